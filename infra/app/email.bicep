// Mail by Communication Services, from a domain that Azure manages, sent by the app's identity.

import { grantee, roles } from 'roles.bicep'

@description('Name of the email service.')
param emailName string

@description('Name of the communication service, which sends.')
param communicationName string

@description('Tags.')
param tags object

@description('Where mail is kept at rest.')
param dataLocation string

@description('Who may send.')
param senders grantee[]

resource email 'Microsoft.Communication/emailServices@2026-03-18' = {
  name: emailName
  location: 'global'
  tags: tags
  properties: { dataLocation: dataLocation }
}

// Nothing to verify; at most 5 mails a minute and 10 an hour, which a summary a day never meets.
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

@description('Where mail is sent from (ACS_ENDPOINT).')
output endpoint string = 'https://${communication.properties.hostName}'

@description('The address that it comes from.')
output sender string = 'DoNotReply@${domain.properties.fromSenderDomain}'
