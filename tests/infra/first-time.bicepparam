// The first provisioning: azd has not stored a budget date yet.
using '../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'
param principalId = '11111111-1111-1111-1111-111111111111'
param thisMonth = '2026-12-01'
