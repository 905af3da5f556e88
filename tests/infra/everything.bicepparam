// All switches that can be combined.
using '../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'
param principalId = '11111111-1111-1111-1111-111111111111'

param openAiSecondaryLocation = 'Germany West Central' // a long name, as the portal writes it
param contentFilter = 'Low'
param vnetEnabled = true
param summaryRecipients = 'ada@example.com, bob@example.com'
param alwaysReadyInstances = 1
param maximumInstances = 100
param httpConcurrency = 16
param purgeProtection = true
param restoreOpenAi = true
param retentionDays = 90
param ledgerRetentionMonths = 24
param storageRedundancy = 'Standard_ZRS'
param rollingUpdates = false
param usageKeys = 'ada=0000000000000000000000000000000000000000000000000000000000000000'
param extraSettings = { AZURE_OPENAI_MAX_TOKENS: '1600' }
param modelDeployments = [
  { name: 'chat', model: 'gpt-5.4-mini', version: '2026-03-17', sku: 'GlobalStandard', capacity: 50 }
  { name: 'cheap', model: 'gpt-5.6-luna', version: '2026-07-09', sku: 'GlobalStandard', capacity: 20 }
]
