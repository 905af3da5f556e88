// Two accounts have two keys.
using '../../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'

param openAiAuth = 'apiKey'
param openAiSecondaryLocation = 'eastus2'
