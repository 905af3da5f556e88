// Invalid: an existing account without its resource group.
using '../../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'

param existingOpenAiName = 'oai-company'
