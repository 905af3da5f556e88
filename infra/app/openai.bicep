// An Azure OpenAI account with its deployments and content filter. Who may use it is openai-access.bicep's business.

@export()
@description('A deployment of a model.')
type deployment = {
  @description('What callers name it by.')
  name: string

  @description('Model, such as gpt-5.4-mini.')
  model: string

  @description('The model\'s version, which is also what its price is known by.')
  version: string

  @description('GlobalStandard, DataZoneStandard or Standard, by where prompts may be processed.')
  sku: string

  @description('Thousands of tokens a minute: a rate limit, and so a limit of cost too.')
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

@description('What the content filter stops at: Low is the strictest. Empty: the service\'s own default.')
@allowed(['', 'Low', 'Medium', 'High'])
param contentFilter string

@description('Whether keys work, beside Microsoft Entra ID.')
param keys bool

@description('Whether it is reached through private endpoints alone.')
param private bool

@description('Whether to bring back an account of this name that was deleted and not purged.')
param restoreDeleted bool

@description('Log Analytics workspace that logs and metrics go to.')
param workspaceId string

// checkov:skip=CKV_AZURE_134: open to identities with a role; vnetEnabled closes the network too
// checkov:skip=CKV_AZURE_236: keys work only with openAiAuth apiKey, which is for those who must
// checkov:skip=CKV_AZURE_238: an identity of its own is for data that it would fetch, and it fetches none
resource account 'Microsoft.CognitiveServices/accounts@2026-07-01' = {
  name: name
  location: location
  tags: tags
  kind: 'OpenAI'
  sku: { name: 'S0' }
  properties: {
    customSubDomainName: name // Microsoft Entra ID needs one
    disableLocalAuth: !keys
    publicNetworkAccess: private ? 'Disabled' : 'Enabled'
    networkAcls: { defaultAction: private ? 'Deny' : 'Allow' }
    ...(restoreDeleted ? { restore: true } : {})
  }
}

var harms = ['Hate', 'Sexual', 'Violence', 'Selfharm']
var everyHarm = flatten(map(
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
      ...everyHarm
      { name: 'Jailbreak', source: 'Prompt', blocking: true, enabled: true }
      { name: 'Protected Material Text', source: 'Completion', blocking: true, enabled: true }
      { name: 'Protected Material Code', source: 'Completion', blocking: false, enabled: true }
    ]
  }
}

@batchSize(1) // the service refuses a second change of an account while one is under way
resource models 'Microsoft.CognitiveServices/accounts/deployments@2026-07-01' = [
  for wanted in deployments: {
    parent: account
    name: wanted.name
    sku: { name: wanted.sku, capacity: wanted.capacity }
    properties: {
      model: { format: 'OpenAI', name: wanted.model, version: wanted.version }
      raiPolicyName: empty(contentFilter) ? 'Microsoft.DefaultV2' : 'chat'
      // Never to a version that nobody asked for; but when this one is retired, an answer is better than none.
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
