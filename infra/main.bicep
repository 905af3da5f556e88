// Everything that the chat API needs in Azure, in its own resource group. `azd up` deploys it.
// The parameters come from azd's environment; main.parameters.json maps their names.

targetScope = 'subscription'

import { addresses } from 'app/addresses.bicep'
import { embeddings, listed } from 'app/deployments.bicep'
import { unpriced, usd } from 'app/limits.bicep'
import { deployment } from 'app/openai.bicep'
import { grantee } from 'app/roles.bicep'

@minLength(1)
@maxLength(64)
@description('Name of the azd environment. The names of the resource group and of all resources derive from it.')
param environmentName string

// Regions with Flex Consumption; `az functionapp list-flexconsumption-locations -o table` prints the current list.
@allowed([
  'australiaeast'
  'australiasoutheast'
  'brazilsouth'
  'canadacentral'
  'centralindia'
  'centralus'
  'eastasia'
  'eastus'
  'eastus2'
  'francecentral'
  'germanywestcentral'
  'italynorth'
  'japaneast'
  'koreacentral'
  'northcentralus'
  'northeurope'
  'norwayeast'
  'southafricanorth'
  'southcentralus'
  'southeastasia'
  'southindia'
  'spaincentral'
  'swedencentral'
  'uaenorth'
  'uksouth'
  'ukwest'
  'westcentralus'
  'westeurope'
  'westus'
  'westus2'
  'westus3'
])
@metadata({
  azd: {
    type: 'location'
    // azd offers only regions with this much quota left. If it is below modelCapacity or embeddingCapacity,
    // infra/hooks/quota lowers them.
    usageName: ['OpenAI.GlobalStandard.gpt-5.4-mini, 5', 'OpenAI.GlobalStandard.text-embedding-3-small, 1']
  }
})
@description('Region of all regional resources.')
param location string

@description('Object ID of the principal that runs azd. A user gets the data roles, so that a local run against Azure needs no keys.')
param principalId string = ''

@description('User, or ServicePrincipal in a pipeline; a service principal gets no data roles.')
param principalType string = 'User'

// -- The models

@description('Capacity of the default of modelDeployments, in thousands of tokens a minute.')
@minValue(1)
param modelCapacity int = 20

@description('Capacity of the default of embeddingDeployment, in thousands of tokens a minute.')
@minValue(1)
param embeddingCapacity int = 50

// Azure retires gpt-5.4-mini 2026-03-17 on 2027-03-18: docs/deploying.md, "Change the model".
@description('Models to deploy, or those deployed in the existing account. The first is the default.')
@minLength(1)
param modelDeployments deployment[] = [
  { name: 'gpt-5.4-mini', model: 'gpt-5.4-mini', version: '2026-03-17', sku: 'GlobalStandard', capacity: modelCapacity }
]

// Not of the type deployment, which would not accept {}; `embeddings` checks it.
@description('Embedding model to deploy, or that deployed in the existing account: an object as in modelDeployments. {} for none.')
param embeddingDeployment object = {
  name: 'text-embedding-3-small'
  model: 'text-embedding-3-small'
  version: '1'
  sku: 'GlobalStandard'
  capacity: embeddingCapacity
}

@description('Region of a second account for failover, called if the first one rejects a request or fails. Empty for none.')
param openAiSecondaryLocation string = ''

@description('Severity at which the content filter blocks: Low is the strictest. Empty for the service\'s default.')
@allowed(['', 'Low', 'Medium', 'High'])
param contentFilter string = ''

@description('How the app signs in to Azure OpenAI: by managed identity, or with a key stored in Key Vault.')
@allowed(['identity', 'apiKey'])
param openAiAuth string = 'identity'

@description('Name of an existing Azure OpenAI account to use. Its deployments and filters are not changed.')
param existingOpenAiName string = ''

@description('Resource group of that account.')
param existingOpenAiResourceGroup string = ''

// -- The app

@description('Requests that an instance serves at once. A stream counts until it ends.')
@minValue(1)
@maxValue(1000)
param httpConcurrency int = 32

// Microsoft.Web takes 1 to 1,000; HTTP and each timer scale on their own.
@description('Maximum number of instances of each function group; it also limits the cost.')
@minValue(1)
@maxValue(1000)
param maximumInstances int = 40

@description('Instances kept warm for HTTP, which are billed all the time; 0 for none.')
@minValue(0)
@maxValue(20)
param alwaysReadyInstances int = 0

@description('Whether running turns finish before a deployment or a changed setting takes effect. A preview feature: set false if Azure rejects it.')
param rollingUpdates bool = true

@description('API keys of callers of openai/*: name=SHA-256 of the key, …')
param clientKeys string = ''

@description('API keys that may read api/usage/*, in the same format.')
param usageKeys string = ''

@description('More app settings, as a JSON object of strings. They override the defaults of this template, but not what it computes.')
param extraSettings object = {}

// -- People

@description('Whether people sign in with Microsoft Entra ID. Function keys then open nothing. Empty: they do not sign in.')
@allowed(['', 'entra'])
param auth string = ''

@description('With entra: application (client) ID of the registration. infra/hooks/sign-in makes one if it is empty.')
param authClientId string = ''

@description('With entra: directory (tenant) ID whose people sign in. Empty: the subscription\'s tenant.')
param authTenantId string = ''

@description('With entra: who issues the tokens, as a URL without a path. Empty: https://login.microsoftonline.com.')
param authAuthority string = ''

@description('With entra: app roles of which a person needs one, comma separated: Chat.User,Chat.Admin. Empty: none is needed.')
param authRoles string = ''

@description('With entra: whether access tokens (people) or client keys (keys) are accepted. Empty: both, people,keys.')
param authAccept string = ''

// -- The daily summary

@description('Comma-separated email addresses for the daily summary and the alerts. Empty: no email, and no email service.')
param summaryRecipients string = ''

// Not empty: azd passes an empty value on, and then the host would not find the timer's schedule.
@minLength(1)
@description('When the daily summary is sent: {second} {minute} {hour} {day} {month} {day of week}, UTC.')
param summarySchedule string = '0 0 6 * * *'

@description('How email is sent: by Communication Services, or by your own SMTP server.')
@allowed(['azure', 'smtp'])
param mailTransport string = 'azure'

@description('With smtp: smtps://user:password@host:465. Stored in Key Vault.')
@secure()
param smtpUrl string = ''

@description('With smtp: the sender\'s address.')
param summarySender string = ''

@minLength(1)
@description('Where Communication Services stores email at rest: Europe, United States, …')
param emailDataLocation string = 'Europe'

// -- Cost

// Amounts are text, so that they stay exact.
@description('USD that the model calls of a UTC day may cost in total; 0 for no limit. Empty: 20, if the price of every deployment is known.')
param limitUsdPerDay string = ''

@description('USD that the model calls of a UTC month may cost in total; 0 for no limit. Empty: 100, if the price of every deployment is known.')
param limitUsdPerMonth string = ''

@description('More limits, as in the app setting LIMITS. What it says about the total wins over the two above.')
param limits object = {}

@description('USD per 1,000,000 tokens by deployment or model, as in the app setting PRICES. Empty: list prices.')
param prices object = {}

@description('Cost of a day\'s model calls in USD above which an alert is sent the next morning; 0 for no alert.')
@minValue(0)
param dailyCostAlertUsd int = 10

// -- Data protection

@description('Whether storage, Azure OpenAI and Key Vault can be reached only through the virtual network.')
param vnetEnabled bool = false

@description('Copies of the data: Standard_LRS (one data center), Standard_ZRS (three zones), Standard_GRS (two regions). Can\'t be changed freely later.')
@allowed(['Standard_LRS', 'Standard_ZRS', 'Standard_GRS', 'Standard_GZRS'])
param storageRedundancy string = 'Standard_LRS'

@description('Whether a deleted vault can\'t be purged for 7 days, not even by azd down --purge. Can\'t be undone.')
param purgeProtection bool = false

// Two switches: Azure rejects a restore if there is nothing to restore, and accounts are purged sooner than the vault.
@description('Whether to restore the OpenAI accounts of this environment (deleted in the last 48 hours, not purged). For one provisioning.')
param restoreOpenAi bool = false

@description('Whether to restore the vault of this environment (deleted in the last 7 days, not purged). For one provisioning.')
param restoreVault bool = false

// Off by default: azd up must never erase the conversations of an existing deployment by surprise.
@description('Days after its last use when a conversation is erased for good; 0: kept until a caller erases it. Applies to existing conversations too.')
@minValue(0)
@maxValue(36500)
param retentionDays int = 0

@description('Complete months, at least 2, for which the rows of the cost ledger are kept beside the current month; 0: kept for good. The totals of each day stay.')
@minValue(0)
@maxValue(1200)
param ledgerRetentionMonths int = 0

@description('Days that logs are stored.')
@minValue(30)
@maxValue(730)
param logRetentionDays int = 30

@description('Gigabytes of logs per day after which no more are accepted; it also limits the cost.')
@minValue(1)
param logDailyCapGb int = 1

var abbreviations = loadJsonContent('abbreviations.json')
var token = toLower(uniqueString(subscription().id, environmentName, location))
var tags = { 'azd-env-name': environmentName }
var packageContainerName = 'app-package'

var createsOpenAi = empty(existingOpenAiName)
var embeddingDeployments = empty(embeddingDeployment) ? [] : embeddings(embeddingDeployment, modelDeployments)
var deployments = [...modelDeployments, ...embeddingDeployments]
var usesKey = openAiAuth == 'apiKey'
// Each account has its own key, and the app sends only one.
var hasSecondary = usesKey && !empty(openAiSecondaryLocation)
  ? fail('openAiSecondaryLocation needs openAiAuth identity: a second account has another key.')
  : !empty(openAiSecondaryLocation)
var openAiName = createsOpenAi ? '${abbreviations.openAi}${token}' : existingOpenAiName
var openAiResourceGroup = createsOpenAi
  ? group.name
  : empty(existingOpenAiResourceGroup)
      ? fail('existingOpenAiName needs existingOpenAiResourceGroup.')
      : existingOpenAiResourceGroup
// The region is part of the names: an account can't move, and a private endpoint can't be redirected.
var secondaryRegion = toLower(replace(openAiSecondaryLocation, ' ', ''))
var secondaryName = '${abbreviations.openAi}${token}-${secondaryRegion}'

var recipients = addresses(summaryRecipients)
var mailsByAzure = !empty(recipients) && mailTransport == 'azure'
var mailsBySmtp = empty(recipients) || mailTransport != 'smtp'
  ? false
  : empty(summarySender) ? fail('mailTransport smtp needs summarySender: the sender\'s address.') : true

// extraSettings sets PRICES in deployments of before there was a parameter.
var pricesSetting = !contains(extraSettings, 'PRICES')
  ? empty(prices) ? '' : string(prices)
  : empty(prices) ? extraSettings.PRICES : fail('PRICES is set twice: by prices and in extraSettings.')
var unpricedDeployments = unpriced(deployments, empty(pricesSetting) ? {} : json(pricesSetting))
// A limit in USD refuses calls whose price is not known, so it is off by default if there may be such calls.
var isPriced = empty(unpricedDeployments)
var total = {
  ...usd('usd_per_day', limitUsdPerDay, isPriced ? '20' : '0')
  ...usd('usd_per_month', limitUsdPerMonth, isPriced ? '100' : '0')
}
var allLimits = contains(extraSettings, 'LIMITS')
  ? fail('extraSettings can\'t set LIMITS: use limits, limitUsdPerDay and limitUsdPerMonth.')
  : union(empty(total) ? {} : { total: total }, limits)
var limitsSetting = empty(allLimits) ? '' : string(allLimits)
var authSettings = {
  AUTH_TENANT_ID: empty(authTenantId) ? tenant().tenantId : authTenantId
  AUTH_CLIENT_ID: auth == 'entra' && empty(authClientId)
    ? fail('auth entra needs authClientId: the registration\'s application (client) ID.')
    : authClientId
  AUTH_AUTHORITY: authAuthority
  AUTH_ROLES: authRoles
  AUTH_ACCEPT: authAccept
}
// As for LIMITS: the app would not get what extraSettings sets of these.
var hasExtraAuth = !empty(filter(items(extraSettings), each => contains(authSettings, each.key)))
var peopleSettings = hasExtraAuth
  ? fail('extraSettings can\'t set AUTH_ settings: use auth, authClientId and the others.')
  : auth == 'entra' ? authSettings : mapValues(authSettings, _ => '')
var ledgerMonths = ledgerRetentionMonths == 1
  ? fail('ledgerRetentionMonths must be 0 or at least 2: a daily summary reads rows of up to 31 days ago.')
  : ledgerRetentionMonths

resource group 'Microsoft.Resources/resourceGroups@2025-04-01' = {
  name: '${abbreviations.resourceGroup}${environmentName}'
  location: location
  tags: tags
}

module identity 'app/identity.bicep' = {
  scope: group
  params: {
    name: '${abbreviations.identity}${token}'
    location: location
    tags: tags
  }
}

var developerId = principalType == 'User' ? principalId : ''
var developers grantee[] = empty(developerId) ? [] : [{ principalId: developerId, principalType: 'User' }]
var app grantee = { principalId: identity.outputs.principalId, principalType: 'ServicePrincipal' }

module monitoring 'app/monitoring.bicep' = {
  scope: group
  params: {
    workspaceName: '${abbreviations.logAnalytics}${token}'
    applicationInsightsName: '${abbreviations.applicationInsights}${token}'
    location: location
    tags: tags
    retentionDays: logRetentionDays
    dailyCapGb: logDailyCapGb
    appPrincipalId: identity.outputs.principalId
  }
}

module storage 'app/storage.bicep' = {
  scope: group
  params: {
    name: '${abbreviations.storageAccount}${token}'
    location: location
    tags: tags
    redundancy: storageRedundancy
    packageContainerName: packageContainerName
    private: vnetEnabled
    workspaceId: monitoring.outputs.workspaceId
    appPrincipalId: identity.outputs.principalId
    tableUsers: [app, ...developers]
  }
}

module openAi 'app/openai.bicep' = if (createsOpenAi) {
  scope: group
  params: {
    name: openAiName
    location: location
    tags: tags
    deployments: deployments
    contentFilter: contentFilter
    keys: usesKey
    private: vnetEnabled
    restoreDeleted: restoreOpenAi
    workspaceId: monitoring.outputs.workspaceId
  }
}

module openAiAccess 'app/openai-access.bicep' = {
  scope: resourceGroup(openAiResourceGroup)
  params: {
    accountName: openAiName
    users: usesKey ? developers : [app, ...developers]
  }
  dependsOn: [openAi]
}

module secondary 'app/openai.bicep' = if (hasSecondary) {
  scope: group
  params: {
    name: secondaryName
    location: openAiSecondaryLocation
    tags: tags
    deployments: deployments
    contentFilter: contentFilter
    keys: false
    private: vnetEnabled
    restoreDeleted: restoreOpenAi
    workspaceId: monitoring.outputs.workspaceId
  }
}

module secondaryAccess 'app/openai-access.bicep' = if (hasSecondary) {
  scope: group
  params: {
    accountName: secondaryName
    users: [app, ...developers]
  }
  dependsOn: [secondary]
}

module vault 'app/vault.bicep' = {
  scope: group
  params: {
    name: '${abbreviations.keyVault}${token}'
    location: location
    tags: tags
    purgeProtection: purgeProtection
    restoreDeleted: restoreVault
    private: vnetEnabled
    workspaceId: monitoring.outputs.workspaceId
    appPrincipalId: identity.outputs.principalId
    developerPrincipalId: developerId
    keepsKey: usesKey
    openAiName: openAiName
    openAiResourceGroup: openAiResourceGroup
    keepsSmtp: mailsBySmtp
    smtpUrl: mailsBySmtp && empty(smtpUrl) ? fail('mailTransport smtp needs smtpUrl.') : smtpUrl
  }
  dependsOn: [openAi]
}

module email 'app/email.bicep' = if (mailsByAzure) {
  scope: group
  params: {
    emailName: '${abbreviations.emailServices}${token}'
    communicationName: '${abbreviations.communicationServices}${token}'
    tags: tags
    dataLocation: emailDataLocation
    senders: [app, ...developers]
  }
}

module network 'app/network.bicep' = if (vnetEnabled) {
  scope: group
  params: {
    name: '${abbreviations.virtualNetwork}${token}'
    securityGroupName: '${abbreviations.networkSecurityGroup}${token}'
    endpointPrefix: '${abbreviations.privateEndpoint}${token}-'
    location: location
    tags: tags
    services: [
      { name: 'blob', id: storage.outputs.id, group: 'blob' }
      { name: 'table', id: storage.outputs.id, group: 'table' }
      { name: 'vault', id: vault.outputs.id, group: 'vault' }
      ...(createsOpenAi ? [{ name: 'openai', id: openAiAccess.outputs.id, group: 'account' }] : [])
      ...(hasSecondary ? [{ name: 'openai-${secondaryRegion}', id: secondaryAccess!.outputs.id, group: 'account' }] : [])
    ]
  }
}

var openAiEndpoint = hasSecondary
  ? '${openAiAccess.outputs.endpoint},${secondaryAccess!.outputs.endpoint}'
  : openAiAccess.outputs.endpoint
var deploymentList = listed(modelDeployments)
var embeddingList = listed(embeddingDeployments)

module function 'app/function.bicep' = {
  scope: group
  params: {
    planName: '${abbreviations.functionPlan}${token}'
    name: '${abbreviations.functionApp}${token}'
    location: location
    tags: tags
    serviceName: 'api'
    identityId: identity.outputs.id
    identityClientId: identity.outputs.clientId
    storageAccountName: storage.outputs.name
    blobEndpoint: storage.outputs.blobEndpoint
    packageContainerName: packageContainerName
    applicationInsightsConnectionString: monitoring.outputs.connectionString
    httpConcurrency: httpConcurrency
    maximumInstances: maximumInstances
    alwaysReadyInstances: alwaysReadyInstances
    rollingUpdates: rollingUpdates
    subnetId: vnetEnabled ? network!.outputs.appSubnetId : ''
    settings: {
      // Defaults that extraSettings can override; local.settings.sample.json describes each.
      AZURE_OPENAI_MAX_TOKENS: '800'
      AZURE_OPENAI_MAX_OUTPUT_TOKENS: '' // empty: 128000 for every deployment
      AZURE_OPENAI_MAX_RETRIES: '2'
      AZURE_OPENAI_REASONING_EFFORT: 'none' // otherwise reasoning could use up the 800 tokens and leave an empty answer
      AZURE_OPENAI_TIMEOUT_SECONDS: '60'
      AZURE_OPENAI_EMBEDDING_DEPLOYMENTS: embeddingList
      TURN_TIMEOUT_SECONDS: '220' // the platform closes an idle request after 230 s
      CONTEXT_TOKENS: '16000'
      SYSTEM_PROMPT: 'You are a helpful assistant. Answer briefly and say so when you do not know.'
      MAX_MESSAGE_BYTES: '262144'
      MAX_REQUEST_BYTES: '20971520'
      TABLE_PREFIX: 'chat'
      CORS_ORIGINS: '' // the platform's own CORS stays off: docs/deploying.md
      RETENTION_DAYS: retentionDays == 0 ? '' : string(retentionDays)
      LEDGER_RETENTION_MONTHS: ledgerMonths == 0 ? '' : string(ledgerMonths)
      ...extraSettings
      // Values that this template computes.
      AZURE_OPENAI_ENDPOINT: openAiEndpoint
      AZURE_OPENAI_MODEL: modelDeployments[0].name
      AZURE_OPENAI_DEPLOYMENTS: deploymentList
      // Another one: Azure Cosmos DB for Table, see docs/deploying.md.
      TABLES_ENDPOINT: extraSettings.?TABLES_ENDPOINT ?? storage.outputs.tableEndpoint
      PRICES: pricesSetting
      LIMITS: limitsSetting
      ...peopleSettings
      CLIENT_KEYS: clientKeys
      USAGE_KEYS: usageKeys
      SUMMARY_SCHEDULE: summarySchedule
      SUMMARY_RECIPIENTS: join(recipients, ',')
      SUMMARY_SENDER: mailsByAzure ? email!.outputs.sender : summarySender
      ...(mailsByAzure ? { ACS_ENDPOINT: email!.outputs.endpoint } : {})
      ...vault.outputs.references
    }
  }
}

module alerts 'app/alerts.bicep' = {
  scope: group
  params: {
    actionGroupName: '${abbreviations.actionGroup}${token}'
    location: location
    tags: tags
    workspaceId: monitoring.outputs.workspaceId
    openAiIds: [openAiAccess.outputs.id, ...(hasSecondary ? [secondaryAccess!.outputs.id] : [])]
    dailyCostUsd: dailyCostAlertUsd
    recipients: recipients
  }
}

// azd stores these in its environment, so none may have the name of a parameter. None is a secret.

@description('Region.')
output AZURE_LOCATION string = location

@description('Tenant.')
output AZURE_TENANT_ID string = tenant().tenantId

@description('Resource group.')
output AZURE_RESOURCE_GROUP string = group.name

@description('Name of the function app.')
output AZURE_FUNCTION_APP_NAME string = function.outputs.name

@description('URL of the function app.')
output AZURE_FUNCTION_APP_URL string = function.outputs.url

@description('URLs of the Azure OpenAI accounts, comma separated, in order of preference.')
output AZURE_OPENAI_ENDPOINT string = openAiEndpoint

@description('Name of the first account.')
output AZURE_OPENAI_NAME string = openAiName

@description('Resource id of the first account.')
output AZURE_OPENAI_RESOURCE_ID string = openAiAccess.outputs.id

@description('The default deployment.')
output AZURE_OPENAI_MODEL string = modelDeployments[0].name

@description('deployment=model@version, …')
output AZURE_OPENAI_DEPLOYMENTS string = deploymentList

@description('deployment=model@version of the embedding model; empty for none.')
output AZURE_OPENAI_EMBEDDING_DEPLOYMENTS string = embeddingList

@description('Name of the vault.')
output AZURE_KEY_VAULT_NAME string = vault.outputs.name

@description('Resource id of the Log Analytics workspace.')
output LOG_ANALYTICS_WORKSPACE_ID string = monitoring.outputs.workspaceId

@description('URL of the tables.')
output TABLES_ENDPOINT string = storage.outputs.tableEndpoint

@description('Name of the budget, which infra/hooks/budget deploys.')
output AZURE_BUDGET_NAME string = '${abbreviations.budget}${token}'

@description('The limits that the app applies, as JSON; empty for none.')
output APP_LIMITS string = limitsSetting

@description('deployment=model@version, …: those whose price is not known.')
output UNPRICED_DEPLOYMENTS string = join(
  map(unpricedDeployments, each => '${each.name}=${each.model}@${each.version}'),
  ', '
)
