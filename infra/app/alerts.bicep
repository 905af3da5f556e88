// Alerts: failing requests, a model at its rate limit, an expensive day, a missing daily summary.

@description('Name of the action group.')
param actionGroupName string

@description('Region of the rules over logs.')
param location string

@description('Tags.')
param tags object

@description('Log Analytics workspace that the rules read.')
param workspaceId string

@description('Resource ids of the Azure OpenAI accounts.')
param openAiIds string[]

@description('Cost of a day in USD above which an alert is sent; 0 for no alert.')
param dailyCostUsd int

@description('Email addresses. If there are none, alerts appear only in the portal.')
param recipients string[]

resource people 'Microsoft.Insights/actionGroups@2023-01-01' = if (!empty(recipients)) {
  name: actionGroupName
  location: 'global'
  tags: tags
  properties: {
    enabled: true
    groupShortName: 'chat-api'
    emailReceivers: [
      for (recipient, index) in recipients: {
        name: 'recipient-${index + 1}'
        emailAddress: recipient
        useCommonAlertSchema: true
      }
    ]
  }
}

var actionGroups = empty(recipients) ? [] : [people.id]

// The service returns 429 above a deployment's capacity. A few are normal: the app waits, or calls the second account.
resource rateLimit 'Microsoft.Insights/metricAlerts@2026-01-01' = [
  for (id, index) in openAiIds: {
    name: 'model-rate-limit-${index + 1}'
    location: 'global'
    tags: tags
    properties: {
      description: 'The model service rejected more than 10 requests in 5 minutes (429). Raise the capacity, or slow the callers down.'
      severity: 2
      enabled: true
      scopes: [id]
      evaluationFrequency: 'PT5M'
      windowSize: 'PT5M'
      autoMitigate: true
      criteria: {
        'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
        allOf: [
          {
            name: 'refused'
            criterionType: 'StaticThresholdCriterion'
            metricNamespace: 'Microsoft.CognitiveServices/accounts'
            metricName: 'AzureOpenAIRequests'
            dimensions: [{ name: 'StatusCode', operator: 'Include', values: ['429'] }]
            operator: 'GreaterThan'
            threshold: 10
            timeAggregation: 'Total'
          }
        ]
      }
      actions: [for group in actionGroups: { actionGroupId: group }]
    }
  }
]

var rules = [
  {
    name: 'server-errors'
    description: 'More than 5 % of the requests in 15 minutes got a 5xx response.'
    severity: 1
    query: loadTextContent('../queries/alert-server-errors.kql')
    column: 'FailedPercent'
    threshold: 5
    every: 'PT15M'
    window: 'PT15M'
    resolves: true
  }
  {
    name: 'summary-failed'
    description: 'The daily cost summary failed, was not emailed, or did not run.'
    severity: 2
    query: loadTextContent('../queries/alert-summary.kql')
    column: ''
    threshold: 0
    every: 'PT1H'
    window: 'P2D'
    // A person resolves it: two days after the last run the query returns nothing, even if the timer never runs again.
    resolves: false
  }
]

var costRule = {
  name: 'daily-cost'
  description: 'A day\'s calls cost more than ${dailyCostUsd} USD, by the ledger. Sent the next morning. The budget watches the Azure bill.'
  severity: 2
  query: loadTextContent('../queries/alert-daily-cost.kql')
  column: 'CostUsd'
  threshold: dailyCostUsd
  every: 'PT1H'
  // Less than a day: Azure notifies again only after two evaluations without a result, else it would miss the next day.
  window: 'PT6H'
  resolves: true
}

resource logAlerts 'Microsoft.Insights/scheduledQueryRules@2026-03-01' = [
  for rule in concat(rules, dailyCostUsd == 0 ? [] : [costRule]): {
    name: rule.name
    location: location
    tags: tags
    kind: 'LogAlert'
    properties: {
      displayName: rule.name
      description: rule.description
      severity: rule.severity
      enabled: true
      scopes: [workspaceId]
      evaluationFrequency: rule.every
      windowSize: rule.window
      autoMitigate: rule.resolves
      ...(rule.resolves ? {} : { muteActionsDuration: 'P1D' }) // otherwise it is emailed every hour
      skipQueryValidation: true // a new workspace has no tables yet
      criteria: {
        allOf: [
          {
            query: rule.query
            operator: 'GreaterThan'
            threshold: rule.threshold
            timeAggregation: empty(rule.column) ? 'Count' : 'Maximum'
            ...(empty(rule.column) ? {} : { metricMeasureColumn: rule.column })
            failingPeriods: { numberOfEvaluationPeriods: 1, minFailingPeriodsToAlert: 1 }
          }
        ]
      }
      actions: { actionGroups: actionGroups }
    }
  }
]
