// People sign in with a registration of another tenant that an administrator made.
using '../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'
param principalId = '11111111-1111-1111-1111-111111111111'

param auth = 'entra'
param authClientId = '55555555-5555-5555-5555-555555555555'
param authTenantId = '44444444-4444-4444-4444-444444444444'
param authAuthority = 'https://login.microsoftonline.us'
param authRoles = 'Chat.User,Chat.Admin'
param authAccept = 'people'
