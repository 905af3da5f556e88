// Role assignments on an Azure OpenAI account (new, or existing in another resource group), and the account's endpoint.

import { grantee, roles } from 'roles.bicep'

@description('Name of the account.')
param accountName string

@description('Principals that may call its models.')
param users grantee[]

resource account 'Microsoft.CognitiveServices/accounts@2026-07-01' existing = {
  name: accountName
}

resource openAiUsers 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for user in users: {
    scope: account
    name: guid(account.id, user.principalId, roles.cognitiveServicesOpenAiUser)
    properties: {
      principalId: user.principalId
      principalType: user.principalType
      roleDefinitionId: subscriptionResourceId(
        'Microsoft.Authorization/roleDefinitions',
        roles.cognitiveServicesOpenAiUser
      )
    }
  }
]

@description('Resource ID of the account.')
output id string = account.id

@description('URL of the account.')
output endpoint string = account.properties.endpoint
