// Sign-in with an API key, which is stored in the vault.
using '../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'
param principalId = '11111111-1111-1111-1111-111111111111'

param openAiAuth = 'apiKey'
