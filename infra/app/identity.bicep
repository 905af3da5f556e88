// The app's one identity. User-assigned, so that its roles are granted before the app exists and outlive it.

@description('Name of the identity.')
param name string

@description('Region.')
param location string

@description('Tags.')
param tags object

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: name
  location: location
  tags: tags
}

@description('Resource id.')
output id string = identity.id

@description('What roles are granted to.')
output principalId string = identity.properties.principalId

@description('What the app names itself by (AZURE_CLIENT_ID).')
output clientId string = identity.properties.clientId
