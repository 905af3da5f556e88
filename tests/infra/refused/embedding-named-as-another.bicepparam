// An embedding model with the name of a chat model's deployment.
using '../../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'

param embeddingDeployment = {
  name: 'GPT-5.4-mini'
  model: 'text-embedding-3-large'
  version: '1'
  sku: 'Standard'
  capacity: 120
}
