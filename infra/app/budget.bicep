// The monthly budget of the resource group. It sends notifications; it stops nothing.
// infra/hooks/budget deploys it, not main.bicep: a subscription whose offer has no budgets rejects it, and a template
// can't go on after an error.

import { addresses } from 'addresses.bicep'

@description('Name of the budget.')
param name string

@description('Amount per month, in the subscription\'s currency.')
@minValue(1)
param amount int

@description('First day of a month, yyyy-MM-01. It can\'t change while the budget exists.')
param startDate string

@description('Comma-separated email addresses to notify, besides the group\'s owners.')
param recipients string

var contacts = {
  contactRoles: ['Owner']
  contactEmails: addresses(recipients)
  enabled: true
  operator: 'GreaterThanOrEqualTo'
}

resource budget 'Microsoft.Consumption/budgets@2026-06-01' = {
  name: name
  properties: {
    category: 'Cost'
    amount: amount
    timeGrain: 'Monthly'
    timePeriod: { startDate: startDate }
    notifications: {
      half: { ...contacts, threshold: 50, thresholdType: 'Actual' }
      most: { ...contacts, threshold: 80, thresholdType: 'Actual' }
      all: { ...contacts, threshold: 100, thresholdType: 'Actual' }
      forecast: { ...contacts, threshold: 100, thresholdType: 'Forecasted' }
    }
  }
}
