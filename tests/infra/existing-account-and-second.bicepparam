// An existing account and a new second one, with a virtual network.
using '../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'
param principalId = '11111111-1111-1111-1111-111111111111'

param existingOpenAiName = 'oai-company'
param existingOpenAiResourceGroup = 'rg-company-ai'
param openAiSecondaryLocation = 'eastus2'
param vnetEnabled = true
