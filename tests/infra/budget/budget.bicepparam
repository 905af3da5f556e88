// The budget as infra/hooks/budget deploys it.
using '../../../infra/app/budget.bicep'

param name = 'budget-test'
param amount = 50
param startDate = '2026-11-01'
param recipients = 'ada@example.com; bob@example.com'
