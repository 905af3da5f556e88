// Everything that the chat API needs in Azure, in a resource group of its own. `azd up` deploys it.
// The parameters come from azd's environment: main.parameters.json says by which name.

targetScope = 'subscription'

import { deployment } from 'app/openai.bicep'
import { grantee } from 'app/roles.bicep'

@minLength(1)
@maxLength(64)
@description('Name of the azd environment; the resource group and every name derive from it.')
param environmentName string

// Where Flex Consumption is; `az functionapp list-flexconsumption-locations --output table` has today's list.
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
    usageName: ['OpenAI.GlobalStandard.gpt-5.4-mini, 20'] // azd offers the regions that have so much quota left
  }
})
@description('Region of everything that has one.')
param location string

@description('Object id of who runs azd; a person gets the data roles, so that a local run against the cloud needs no keys.')
param principalId string = ''

@description('User, or ServicePrincipal in a pipeline, which gets no roles.')
param principalType string = 'User'

// -- The model

@description('Models to deploy (or, in an existing account, deployed there); the first is the default.')
@minLength(1)
param modelDeployments deployment[] = [
  { name: 'gpt-5.4-mini', model: 'gpt-5.4-mini', version: '2026-03-17', sku: 'GlobalStandard', capacity: 20 }
]

@description('Region of a second account, asked when the first one refuses or fails; empty for none.')
param openAiSecondaryLocation string = ''

@description('What the content filter stops at: Low is the strictest. Empty: the service\'s own default.')
@allowed(['', 'Low', 'Medium', 'High'])
param contentFilter string = ''

@description('How the app signs in to Azure OpenAI. apiKey is for those who must: a key, kept in Key Vault.')
@allowed(['identity', 'apiKey'])
param openAiAuth string = 'identity'

@description('Name of an Azure OpenAI account to use instead of a new one; its deployments and filters are left alone.')
param existingOpenAiName string = ''

@description('Resource group of that account.')
param existingOpenAiResourceGroup string = ''

// -- The app

@description('Requests that an instance serves at once. A stream is a request for as long as it runs.')
@minValue(1)
@maxValue(1000)
param httpConcurrency int = 32

@description('The most instances; a limit of cost too.')
@minValue(40)
@maxValue(1000)
param maximumInstances int = 40

@description('Instances that are kept warm for HTTP, and paid for day and night; 0 for none.')
@minValue(0)
@maxValue(20)
param alwaysReadyInstances int = 0

@description('Whether a deployment or a changed setting lets running turns finish. A preview of the platform: false if it is refused.')
param rollingUpdates bool = true

@description('Callers of openai/*: name=SHA-256 of the key, …')
param clientKeys string = ''

@description('Who may read api/usage/*, in the same form.')
param usageKeys string = ''

@description('App settings beside and before those of this template, as a JSON object of strings.')
param extraSettings object = {}

// -- The daily summary

@description('E-mail addresses, comma separated, of the daily summary and of the alerts. Empty: no mail, and no mail service.')
param summaryRecipients string = ''

// Not empty: azd hands on an empty value as one, and the host would not find the timer.
@minLength(1)
@description('When the daily summary is sent: {second} {minute} {hour} {day} {month} {day of week}, UTC.')
param summarySchedule string = '0 0 6 * * *'

@description('How mail leaves: by Communication Services, or by an SMTP server of yours.')
@allowed(['azure', 'smtp'])
param mailTransport string = 'azure'

@description('With smtp: smtps://user:password@host:465. Kept in Key Vault.')
@secure()
param smtpUrl string = ''

@description('With smtp: the address that mail comes from.')
param summarySender string = ''

@minLength(1)
@description('Where Communication Services keeps mail at rest: Europe, United States, …')
param emailDataLocation string = 'Europe'

// -- Money

@description('US dollars (the subscription\'s currency) that the resource group may cost a month before somebody is told; 0 for no budget.')
@minValue(0)
param budgetAmount int = 50

@description('First day of the budget\'s first month. azd keeps it as AZURE_BUDGET_START_DATE, since it can never change. Empty: this month\'s.')
param budgetStartDate string = ''

@description('First day of this month: a parameter because only there a template may ask for the time. Leave it alone.')
param thisMonth string = utcNow('yyyy-MM-01')

@description('US dollars of model calls a day above which somebody is told the morning after; 0 for no alert.')
@minValue(0)
param dailyCostAlertUsd int = 10

// -- Keeping

@description('Whether the app reaches storage, Azure OpenAI and Key Vault through a virtual network alone.')
param vnetEnabled bool = false

@description('How often the conversations are kept: Standard_LRS, Standard_ZRS (three buildings), Standard_GRS (two regions). Can\'t be changed freely later.')
@allowed(['Standard_LRS', 'Standard_ZRS', 'Standard_GRS', 'Standard_GZRS'])
param storageRedundancy string = 'Standard_LRS'

@description('Whether nobody can remove the vault for good before 7 days are over. Can\'t be undone, and azd down --purge then leaves it.')
param purgeProtection bool = false

// Two switches, since each is refused where there is nothing to bring back, and an account is gone long before a vault.
@description('Whether to bring back the OpenAI accounts of this environment: deleted within 48 hours, and not purged. For one provisioning.')
param restoreOpenAi bool = false

@description('Whether to bring back the vault of this environment: deleted within 7 days, and not purged. For one provisioning.')
param restoreVault bool = false

@description('Days that logs are kept.')
@minValue(30)
@maxValue(730)
param logRetentionDays int = 30

@description('Gigabytes of logs a day after which no more are taken in; a limit of cost too.')
@minValue(1)
param logDailyCapGb int = 1

var abbreviations = loadJsonContent('abbreviations.json')
var token = toLower(uniqueString(subscription().id, environmentName, location))
var tags = { 'azd-env-name': environmentName }
var packageContainerName = 'app-package'

var createsOpenAi = empty(existingOpenAiName)
var usesKey = openAiAuth == 'apiKey'
// The second account would have another key, and the app sends one.
var hasSecondary = usesKey && !empty(openAiSecondaryLocation)
  ? fail('openAiSecondaryLocation needs openAiAuth identity: a second account has another key.')
  : !empty(openAiSecondaryLocation)
var openAiName = createsOpenAi ? '${abbreviations.openAi}${token}' : existingOpenAiName
var openAiResourceGroup = createsOpenAi
  ? group.name
  : empty(existingOpenAiResourceGroup)
      ? fail('existingOpenAiName needs existingOpenAiResourceGroup.')
      : existingOpenAiResourceGroup
// The region is part of the names: an account can't move, nor a private endpoint point elsewhere.
var secondaryRegion = toLower(replace(openAiSecondaryLocation, ' ', ''))
var secondaryName = '${abbreviations.openAi}${token}-${secondaryRegion}'

var recipients = filter(map(split(replace(summaryRecipients, ';', ','), ','), part => trim(part)), part => !empty(part))
var mailsByAzure = !empty(recipients) && mailTransport == 'azure'
var mailsBySmtp = empty(recipients) || mailTransport != 'smtp'
  ? false
  : empty(summarySender) ? fail('mailTransport smtp needs summarySender: the address that mail comes from.') : true

// Where there is no budget no date is made up: on the day that there is one it would be past, which Azure refuses. One that
// was given is kept, since a budget that is switched off is still there.
var budgetStart = budgetAmount > 0 && empty(budgetStartDate) ? thisMonth : budgetStartDate

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
    deployments: modelDeployments
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
    deployments: modelDeployments
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
var deploymentList = join(map(modelDeployments, made => '${made.name}=${made.model}@${made.version}'), ',')

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
    blobEndpoint: storage.outputs.blobEndpoint
    packageContainerName: packageContainerName
    applicationInsightsConnectionString: monitoring.outputs.connectionString
    httpConcurrency: httpConcurrency
    maximumInstances: maximumInstances
    alwaysReadyInstances: alwaysReadyInstances
    rollingUpdates: rollingUpdates
    subnetId: vnetEnabled ? network!.outputs.appSubnetId : ''
    settings: {
      // What the operator may turn; local.settings.sample.json says what each means.
      AZURE_OPENAI_MAX_TOKENS: '800'
      AZURE_OPENAI_MAX_OUTPUT_TOKENS: '128000'
      AZURE_OPENAI_MAX_RETRIES: '2'
      AZURE_OPENAI_REASONING_EFFORT: 'none' // or reasoning could use up the 800 tokens and leave an empty answer
      AZURE_OPENAI_TIMEOUT_SECONDS: '60'
      TURN_TIMEOUT_SECONDS: '220' // the platform closes a silent request at 230
      CONTEXT_TOKENS: '16000'
      SYSTEM_PROMPT: 'You are a helpful assistant. Answer briefly and say so when you do not know.'
      MAX_MESSAGE_BYTES: '262144'
      MAX_REQUEST_BYTES: '20971520'
      PRICES: '' // list prices
      TABLE_PREFIX: 'chat'
      ...extraSettings
      // What this template knows.
      AZURE_OPENAI_ENDPOINT: openAiEndpoint
      AZURE_OPENAI_MODEL: modelDeployments[0].name
      AZURE_OPENAI_DEPLOYMENTS: deploymentList
      TABLES_ENDPOINT: storage.outputs.tableEndpoint
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

module budget 'app/budget.bicep' = if (budgetAmount > 0) {
  scope: group
  params: {
    name: '${abbreviations.budget}${token}'
    amount: budgetAmount
    startDate: budgetStart
    recipients: recipients
  }
  // The last of all: azd keeps its date only when everything succeeded, and a retry next month would say another.
  dependsOn: [alerts, function]
}

// azd keeps these in its environment. Never a key.

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

@description('Name of the vault.')
output AZURE_KEY_VAULT_NAME string = vault.outputs.name

@description('Resource id of the Log Analytics workspace.')
output LOG_ANALYTICS_WORKSPACE_ID string = monitoring.outputs.workspaceId

@description('Where the tables are.')
output TABLES_ENDPOINT string = storage.outputs.tableEndpoint

@description('First day of the budget\'s first month, so that the next provisioning says the same; empty before there is one.')
output AZURE_BUDGET_START_DATE string = budgetStart
