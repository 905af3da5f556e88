// Invalid: an API key with two accounts, which have different keys.
using '../../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'

param openAiAuth = 'apiKey'
param openAiSecondaryLocation = 'eastus2'
