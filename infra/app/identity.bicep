// The app's identity. User-assigned, so that roles can be granted before the app exists and survive its deletion.

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

@description('Resource ID.')
output id string = identity.id

@description('Principal ID, for role assignments.')
output principalId string = identity.properties.principalId

@description('Client ID (AZURE_CLIENT_ID).')
output clientId string = identity.properties.clientId
