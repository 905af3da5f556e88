// No budget, and there never was one: azd has stored an empty date.
using '../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'
param principalId = '11111111-1111-1111-1111-111111111111'
param budgetStartDate = ''
param thisMonth = '2026-12-01'

param budgetAmount = 0
