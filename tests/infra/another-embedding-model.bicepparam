// Another embedding model, in the region only.
using '../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'
param principalId = '11111111-1111-1111-1111-111111111111'

param embeddingDeployment = {
  name: 'search'
  model: 'text-embedding-3-large'
  version: '1'
  sku: 'Standard'
  capacity: 120
}
