// The built-in roles that this deployment grants, and the principals that get them.

@export()
@description('IDs of the built-in roles: https://learn.microsoft.com/azure/role-based-access-control/built-in-roles')
var roles = {
  cognitiveServicesOpenAiUser: '5e0bd9bd-7b93-4f28-af87-19fc36ad61bd'
  communicationAndEmailServiceOwner: '09976791-48a7-449e-bb21-39d1a415f350'
  keyVaultSecretsOfficer: 'b86a8fe4-44ce-4948-aee5-eccb2c155cd7'
  keyVaultSecretsUser: '4633458b-17de-408a-874b-0445c86b69e6'
  monitoringMetricsPublisher: '3913510d-42f4-4e42-8a64-420c390055eb'
  storageBlobDataOwner: 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b'
  storageTableDataContributor: '0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3'
}

@export()
@description('A principal that gets a role: the app\'s identity, or the developer who runs azd.')
type grantee = {
  @description('Object ID in Microsoft Entra ID.')
  principalId: string

  @description('Given explicitly, so that the assignment also works before a new principal is replicated in the directory.')
  principalType: 'ServicePrincipal' | 'User'
}
