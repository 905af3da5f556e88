// Email by Communication Services from an Azure-managed domain. The app signs in with its identity.

import { grantee, roles } from 'roles.bicep'

@description('Name of the email service.')
param emailName string

@description('Name of the communication service, which sends email.')
param communicationName string

@description('Tags.')
param tags object

@description('Where email is stored at rest.')
param dataLocation string

@description('Principals that may send email.')
param senders grantee[]

resource email 'Microsoft.Communication/emailServices@2026-03-18' = {
  name: emailName
  location: 'global'
  tags: tags
  properties: { dataLocation: dataLocation }
}

// No verification needed. Its limits (5 emails per minute, 10 per hour) are ample for a daily summary.
resource domain 'Microsoft.Communication/emailServices/domains@2026-03-18' = {
  parent: email
  name: 'AzureManagedDomain'
  location: 'global'
  tags: tags
  properties: {
    domainManagement: 'AzureManaged'
    userEngagementTracking: 'Disabled'
  }
}

resource communication 'Microsoft.Communication/communicationServices@2026-03-18' = {
  name: communicationName
  location: 'global'
  tags: tags
  properties: {
    dataLocation: dataLocation
    linkedDomains: [domain.id]
    disableLocalAuth: true
  }
}

resource owners 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for sender in senders: {
    scope: communication
    name: guid(communication.id, sender.principalId, roles.communicationAndEmailServiceOwner)
    properties: {
      principalId: sender.principalId
      principalType: sender.principalType
      roleDefinitionId: subscriptionResourceId(
        'Microsoft.Authorization/roleDefinitions',
        roles.communicationAndEmailServiceOwner
      )
    }
  }
]

@description('Endpoint of the communication service (ACS_ENDPOINT).')
output endpoint string = 'https://${communication.properties.hostName}'

@description('The sender\'s address.')
output sender string = 'DoNotReply@${domain.properties.fromSenderDomain}'
