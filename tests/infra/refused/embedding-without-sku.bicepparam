// An embedding model without a SKU.
using '../../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'

param embeddingDeployment = { name: 'search', model: 'text-embedding-3-large', version: '1', capacity: 120 }
