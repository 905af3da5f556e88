// What is secret at all. Empty unless a key of Azure OpenAI or an SMTP URL is used; the app reads it by reference.

import { roles } from 'roles.bicep'

@description('Name of the vault.')
param name string

@description('Region.')
param location string

@description('Tags.')
param tags object

@description('Whether nobody, not even azd down --purge, can remove it for good before its 7 days are over. Can\'t be undone.')
param purgeProtection bool

@description('Whether to bring back a vault of this name that was deleted and not purged.')
param restoreDeleted bool

@description('Whether it is reached through private endpoints alone.')
param private bool

@description('Log Analytics workspace that audit logs go to.')
param workspaceId string

@description('The app\'s identity, which reads secrets.')
param appPrincipalId string

@description('The developer, who may change them; empty for none.')
param developerPrincipalId string

@description('Whether the key of Azure OpenAI is kept.')
param keepsKey bool

@description('The Azure OpenAI account. Named in any case: Azure has refused an empty name that no condition let it use (bicep#13937).')
param openAiName string

@description('Resource group of that account.')
param openAiResourceGroup string

@description('Whether an SMTP URL is kept.')
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
    enablePurgeProtection: purgeProtection ? true : null // false is refused
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

// checkov:skip=CKV_AZURE_41: an expired secret would stop the app; docs/deploying.md says how they are rotated
resource openAiKey 'Microsoft.KeyVault/vaults/secrets@2026-05-15' = if (keepsKey) {
  parent: vault
  name: 'openai-api-key'
  properties: {
    value: openAi!.listKeys().key1
    contentType: 'key 1 of ${openAiName}'
  }
}

// checkov:skip=CKV_AZURE_41: an expired secret would stop the app; docs/deploying.md says how they are rotated
resource openAiEndpoint 'Microsoft.KeyVault/vaults/secrets@2026-05-15' = if (keepsKey) {
  parent: vault
  name: 'openai-endpoint'
  properties: {
    value: openAi!.properties.endpoint
    contentType: 'URL'
  }
}

// checkov:skip=CKV_AZURE_41: an expired secret would stop the app; docs/deploying.md says how they are rotated
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

// Without a version, so that a rotated secret is read within 24 hours: https://learn.microsoft.com/azure/app-service/app-service-key-vault-references#rotation
var secrets = 'https://${vault.name}${environment().suffixes.keyvaultDns}/secrets'

@description('Resource id.')
output id string = vault.id

@description('Name.')
output name string = vault.name

@description('App settings that refer to what is kept; never a value.')
output references object = {
  ...(keepsKey
    ? {
        AZURE_OPENAI_API_KEY: '@Microsoft.KeyVault(SecretUri=${secrets}/openai-api-key)'
        AZURE_OPENAI_ENDPOINT: '@Microsoft.KeyVault(SecretUri=${secrets}/openai-endpoint)'
      }
    : {})
  ...(keepsSmtp ? { SMTP_URL: '@Microsoft.KeyVault(SecretUri=${secrets}/smtp-url)' } : {})
}
