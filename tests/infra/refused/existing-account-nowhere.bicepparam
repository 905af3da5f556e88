// An account that is there already has to be somewhere.
using '../../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'

param existingOpenAiName = 'oai-company'
