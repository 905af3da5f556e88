// The first provisioning: azd keeps no date of a budget yet.
using '../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'
param principalId = '11111111-1111-1111-1111-111111111111'
param thisMonth = '2026-12-01'
