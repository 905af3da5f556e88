// An Azure OpenAI account with its deployments and content filter. openai-access.bicep grants access to it.

@export()
@description('A deployment of a model.')
type deployment = {
  @description('Name that callers use.')
  name: string

  @description('Model, such as gpt-5.4-mini.')
  model: string

  @description('The model\'s version; the price depends on it.')
  version: string

  @description('GlobalStandard, DataZoneStandard or Standard: where prompts may be processed.')
  sku: string

  @description('Thousands of tokens per minute: a rate limit, which also limits the cost.')
  @minValue(1)
  capacity: int
}

@description('Name of the account, and of its subdomain.')
param name string

@description('Region.')
param location string

@description('Tags.')
param tags object

@description('Models to deploy.')
param deployments deployment[]

@description('Severity at which the content filter blocks: Low is the strictest. Empty for the service\'s default.')
@allowed(['', 'Low', 'Medium', 'High'])
param contentFilter string

@description('Whether keys are accepted besides Microsoft Entra ID.')
param keys bool

@description('Whether it can be reached only through private endpoints.')
param private bool

@description('Whether to restore a deleted account of this name that was not purged.')
param restoreDeleted bool

@description('Log Analytics workspace for logs and metrics.')
param workspaceId string

// checkov:skip=CKV_AZURE_134: open to identities with a role; vnetEnabled closes the network too
// checkov:skip=CKV_AZURE_236: keys are accepted only with openAiAuth apiKey
// checkov:skip=CKV_AZURE_238: the account needs an identity only to fetch data, and it fetches none
resource account 'Microsoft.CognitiveServices/accounts@2026-07-01' = {
  name: name
  location: location
  tags: tags
  kind: 'OpenAI'
  sku: { name: 'S0' }
  properties: {
    customSubDomainName: name // required for Microsoft Entra ID
    disableLocalAuth: !keys
    publicNetworkAccess: private ? 'Disabled' : 'Enabled'
    networkAcls: { defaultAction: private ? 'Deny' : 'Allow' }
    ...(restoreDeleted ? { restore: true } : {})
  }
}

var harms = ['Hate', 'Sexual', 'Violence', 'Selfharm']
var harmFilters = flatten(map(
  ['Prompt', 'Completion'],
  source =>
    map(harms, harm => {
      name: harm
      source: source
      severityThreshold: contentFilter
      blocking: true
      enabled: true
    })
))

resource filter 'Microsoft.CognitiveServices/accounts/raiPolicies@2026-07-01' = if (!empty(contentFilter)) {
  parent: account
  name: 'chat'
  properties: {
    basePolicyName: 'Microsoft.DefaultV2'
    mode: 'Blocking'
    contentFilters: [
      ...harmFilters
      { name: 'Jailbreak', source: 'Prompt', blocking: true, enabled: true }
      { name: 'Protected Material Text', source: 'Completion', blocking: true, enabled: true }
      { name: 'Protected Material Code', source: 'Completion', blocking: false, enabled: true }
    ]
  }
}

@batchSize(1) // 409 RequestConflict for a second change to an account while one is running: bicep-types-az#1730
resource models 'Microsoft.CognitiveServices/accounts/deployments@2026-07-01' = [
  for deployment in deployments: {
    parent: account
    name: deployment.name
    sku: { name: deployment.sku, capacity: deployment.capacity }
    properties: {
      model: { format: 'OpenAI', name: deployment.model, version: deployment.version }
      raiPolicyName: empty(contentFilter) ? 'Microsoft.DefaultV2' : 'chat'
      // Keep the version until it is retired; after that, use the newest one rather than fail.
      versionUpgradeOption: 'OnceCurrentVersionExpired'
    }
    dependsOn: [filter]
  }
]

resource logs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: account
  name: 'audit'
  properties: {
    workspaceId: workspaceId
    logs: [
      { category: 'Audit', enabled: true }
      { category: 'RequestResponse', enabled: true } // statuses and durations, no content
      { category: 'AzureOpenAIRequestUsage', enabled: true }
    ]
    metrics: [{ category: 'AllMetrics', enabled: true }]
  }
}

@description('Name of the account, once its models are deployed.')
output name string = account.name
