// Who may use an Azure OpenAI account (new, or somebody's in another resource group), and where it is.

import { grantee, roles } from 'roles.bicep'

@description('Name of the account.')
param accountName string

@description('Who may ask its models.')
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

@description('Resource id of the account.')
output id string = account.id

@description('URL of the account.')
output endpoint string = account.properties.endpoint
