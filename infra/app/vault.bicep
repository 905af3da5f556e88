// The app's secrets: a key of Azure OpenAI or an SMTP URL, if either is used. The app reads them by reference.

import { roles } from 'roles.bicep'

@description('Name of the vault.')
param name string

@description('Region.')
param location string

@description('Tags.')
param tags object

@description('Whether a deleted vault can\'t be purged for 7 days, not even by azd down --purge. Can\'t be undone.')
param purgeProtection bool

@description('Whether to restore a deleted vault of this name that was not purged.')
param restoreDeleted bool

@description('Whether it can be reached only through private endpoints.')
param private bool

@description('Log Analytics workspace for audit logs.')
param workspaceId string

@description('Principal ID of the app\'s identity, which reads secrets.')
param appPrincipalId string

@description('Principal ID of the developer, who may change secrets; empty for none.')
param developerPrincipalId string

@description('Whether to store the key of Azure OpenAI.')
param keepsKey bool

@description('Name of the Azure OpenAI account. Required even if unused: Azure has rejected an empty name (bicep#13937).')
param openAiName string

@description('Resource group of that account.')
param openAiResourceGroup string

@description('Whether to store an SMTP URL.')
param keepsSmtp bool

@description('SMTP URL with its password.')
@secure()
param smtpUrl string

// checkov:skip=CKV_AZURE_42: purgeProtection is the operator's choice: azd down --purge could not remove the vault
// checkov:skip=CKV_AZURE_109: open to identities with a role; vnetEnabled closes the network too
// checkov:skip=CKV_AZURE_110: as CKV_AZURE_42
// checkov:skip=CKV_AZURE_189: as CKV_AZURE_109
resource vault 'Microsoft.KeyVault/vaults@2026-05-15' = {
  name: name
  location: location
  tags: tags
  properties: {
    tenantId: tenant().tenantId
    sku: { family: 'A', name: 'standard' }
    enableRbacAuthorization: true
    enableSoftDelete: true
    softDeleteRetentionInDays: 7
    enablePurgeProtection: purgeProtection ? true : null // Azure rejects false
    createMode: restoreDeleted ? 'recover' : 'default'
    publicNetworkAccess: private ? 'Disabled' : 'Enabled'
    networkAcls: {
      bypass: 'AzureServices'
      defaultAction: private ? 'Deny' : 'Allow'
    }
  }
}

resource openAi 'Microsoft.CognitiveServices/accounts@2026-07-01' existing = if (keepsKey) {
  name: openAiName
  scope: resourceGroup(openAiResourceGroup)
}

// checkov:skip=CKV_AZURE_41: an expired secret would stop the app; docs/deploying.md describes rotation
resource openAiKey 'Microsoft.KeyVault/vaults/secrets@2026-05-15' = if (keepsKey) {
  parent: vault
  name: 'openai-api-key'
  properties: {
    value: openAi!.listKeys().key1
    contentType: 'key 1 of ${openAiName}'
  }
}

// checkov:skip=CKV_AZURE_41: an expired secret would stop the app; docs/deploying.md describes rotation
resource openAiEndpoint 'Microsoft.KeyVault/vaults/secrets@2026-05-15' = if (keepsKey) {
  parent: vault
  name: 'openai-endpoint'
  properties: {
    value: openAi!.properties.endpoint
    contentType: 'URL'
  }
}

// checkov:skip=CKV_AZURE_41: an expired secret would stop the app; docs/deploying.md describes rotation
resource smtp 'Microsoft.KeyVault/vaults/secrets@2026-05-15' = if (keepsSmtp) {
  parent: vault
  name: 'smtp-url'
  properties: {
    value: smtpUrl
    contentType: 'URL with user and password'
  }
}

resource reader 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (keepsKey || keepsSmtp) {
  scope: vault
  name: guid(vault.id, appPrincipalId, roles.keyVaultSecretsUser)
  properties: {
    principalId: appPrincipalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.keyVaultSecretsUser)
  }
}

resource developer 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(developerPrincipalId)) {
  scope: vault
  name: guid(vault.id, developerPrincipalId, roles.keyVaultSecretsOfficer)
  properties: {
    principalId: developerPrincipalId
    principalType: 'User'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.keyVaultSecretsOfficer)
  }
}

resource logs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: vault
  name: 'audit'
  properties: {
    workspaceId: workspaceId
    logs: [{ category: 'AuditEvent', enabled: true }]
  }
}

// No version in the URI, so that a rotated secret is read within 24 hours: https://learn.microsoft.com/azure/app-service/app-service-key-vault-references#rotation
var secrets = 'https://${vault.name}${environment().suffixes.keyvaultDns}/secrets'

@description('Resource ID.')
output id string = vault.id

@description('Name.')
output name string = vault.name

@description('App settings that refer to the stored secrets, never their values.')
output references object = {
  ...(keepsKey
    ? {
        AZURE_OPENAI_API_KEY: '@Microsoft.KeyVault(SecretUri=${secrets}/openai-api-key)'
        AZURE_OPENAI_ENDPOINT: '@Microsoft.KeyVault(SecretUri=${secrets}/openai-endpoint)'
      }
    : {})
  ...(keepsSmtp ? { SMTP_URL: '@Microsoft.KeyVault(SecretUri=${secrets}/smtp-url)' } : {})
}
