// What this resource group may cost a month, and who is told when it does. It stops nothing.

@description('Name of the budget.')
param name string

@description('US dollars (the subscription\'s currency) a month.')
param amount int

@description('First day of a month, yyyy-MM-01; can never change while the budget exists.')
param startDate string

@description('Who is told, beside the group\'s owners.')
param recipients string[]

var contacts = { contactRoles: ['Owner'], contactEmails: recipients, enabled: true, operator: 'GreaterThanOrEqualTo' }

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
