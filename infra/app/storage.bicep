// The storage account: the app's tables (which the app creates), the deployment package, the Functions host's blobs.

import { grantee, roles } from 'roles.bicep'

@description('Name of the account.')
param name string

@description('Region.')
param location string

@description('Tags.')
param tags object

@description('Copies of the data: Standard_LRS (one data center), Standard_ZRS (three zones), Standard_GRS (two regions).')
param redundancy string

@description('Container of the deployment package.')
param packageContainerName string

@description('Whether it can be reached only through private endpoints.')
param private bool

@description('Log Analytics workspace for audit logs.')
param workspaceId string

@description('Principal ID of the app\'s identity; only it may access the blobs.')
param appPrincipalId string

@description('Principals that may read and write the tables.')
param tableUsers grantee[]

// checkov:skip=CKV_AZURE_206: storageRedundancy is the operator's choice, since it affects the price
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
    allowSharedKeyAccess: false // only identities; this disables account SAS too
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

// Log writes and deletes. Reads are left out: each turn has several, and logs cost more than the tables.
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

// Scoped to the account, since the host creates its containers and the app its tables on first use.
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

@description('Resource ID.')
output id string = account.id

@description('Name.')
output name string = account.name

@description('URL of the blobs, without a trailing slash.')
output blobEndpoint string = 'https://${account.name}.blob.${environment().suffixes.storage}'

@description('URL of the tables, without a trailing slash.')
output tableEndpoint string = 'https://${account.name}.table.${environment().suffixes.storage}'
