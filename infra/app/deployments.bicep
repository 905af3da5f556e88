// Lists of deployments: which there are, and how the app settings write them.

import { deployment } from 'openai.bicep'

@export()
@description('The embedding model as a list: empty if it is one of modelDeployments.')
func embeddings(embeddingDeployment deployment, modelDeployments deployment[]) deployment[] =>
  filter([embeddingDeployment], embedding => empty(filter(modelDeployments, each => isSame(each, embedding))))

@description('Whether both are the same deployment. Azure compares the names without case.')
func isSame(each deployment, embedding deployment) bool =>
  toLower(each.name) != toLower(embedding.name)
    ? false
    : each.model == embedding.model
        ? true
        : fail('modelDeployments and embeddingDeployment both name a deployment "${each.name}", with different models.')

@export()
@description('deployment=model@version, …')
func listed(deployments deployment[]) string =>
  join(map(deployments, each => '${each.name}=${each.model}@${each.version}'), ',')
