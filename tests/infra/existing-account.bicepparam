// An existing account.
using '../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'
param principalId = '11111111-1111-1111-1111-111111111111'

param existingOpenAiName = 'oai-company'
param existingOpenAiResourceGroup = 'rg-company-ai'
