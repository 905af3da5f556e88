// One storage account: the app's tables (which the app makes), the deployment package, and what the Functions host keeps.

import { grantee, roles } from 'roles.bicep'

@description('Name of the account.')
param name string

@description('Region.')
param location string

@description('Tags.')
param tags object

@description('How often the data is kept: Standard_LRS in one building, Standard_ZRS in three, Standard_GRS in two regions.')
param redundancy string

@description('Container of the deployment package.')
param packageContainerName string

@description('Whether it is reached through private endpoints alone.')
param private bool

@description('Log Analytics workspace that audit logs go to.')
param workspaceId string

@description('The app\'s identity: the host\'s blobs are for it alone.')
param appPrincipalId string

@description('Who may read and write the tables.')
param tableUsers grantee[]

// checkov:skip=CKV_AZURE_206: storageRedundancy is the operator's choice, and of the price
// checkov:skip=CKV_AZURE_35: open to identities, never to keys; vnetEnabled closes the network too
// checkov:skip=CKV_AZURE_59: as above; no container is public
resource account 'Microsoft.Storage/storageAccounts@2026-06-01' = {
  name: name
  location: location
  tags: tags
  kind: 'StorageV2'
  sku: { name: redundancy }
  properties: {
    accessTier: 'Hot'
    allowBlobPublicAccess: false
    allowCrossTenantReplication: false
    allowSharedKeyAccess: false // identities alone, and no SAS of the account either
    defaultToOAuthAuthentication: true
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
    publicNetworkAccess: private ? 'Disabled' : 'Enabled'
    networkAcls: {
      bypass: 'AzureServices'
      defaultAction: private ? 'Deny' : 'Allow'
    }
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2026-06-01' = {
  parent: account
  name: 'default'
  properties: {
    deleteRetentionPolicy: { enabled: true, days: 7 }
    containerDeleteRetentionPolicy: { enabled: true, days: 7 }
  }
}

resource packages 'Microsoft.Storage/storageAccounts/blobServices/containers@2026-06-01' = {
  parent: blobs
  name: packageContainerName
  properties: { publicAccess: 'None' }
}

resource tables 'Microsoft.Storage/storageAccounts/tableServices@2026-06-01' = {
  parent: account
  name: 'default'
}

// Who wrote and who deleted. Reads are left out: each turn would log several, and logs cost more than tables do.
var audited = {
  logs: [
    { category: 'StorageWrite', enabled: true }
    { category: 'StorageDelete', enabled: true }
  ]
  metrics: [{ category: 'Transaction', enabled: true }]
}

resource blobLogs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: blobs
  name: 'audit'
  properties: { workspaceId: workspaceId, ...audited }
}

resource tableLogs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: tables
  name: 'audit'
  properties: { workspaceId: workspaceId, ...audited }
}

// The account and not a container or a table: the host makes its containers, and the app its tables, at first use.
resource blobOwner 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: account
  name: guid(account.id, appPrincipalId, roles.storageBlobDataOwner)
  properties: {
    principalId: appPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.storageBlobDataOwner)
  }
}

resource tableContributors 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for user in tableUsers: {
    scope: account
    name: guid(account.id, user.principalId, roles.storageTableDataContributor)
    properties: {
      principalId: user.principalId
      principalType: user.principalType
      roleDefinitionId: subscriptionResourceId(
        'Microsoft.Authorization/roleDefinitions',
        roles.storageTableDataContributor
      )
    }
  }
]

@description('Resource id.')
output id string = account.id

@description('Where the blobs are (no slash at the end).')
output blobEndpoint string = 'https://${account.name}.blob.${environment().suffixes.storage}'

@description('Where the tables are (no slash at the end).')
output tableEndpoint string = 'https://${account.name}.table.${environment().suffixes.storage}'
