// Restores the vault only: the account was purged, or deleted more than 48 hours ago.
using '../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'
param principalId = '11111111-1111-1111-1111-111111111111'

param restoreVault = true
