// What somebody should hear of: failing requests, a model at its rate limit, a dear day, a summary that did not come.

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

@description('US dollars that a day may cost; above it somebody is told. 0: nobody.')
param dailyCostUsd int

@description('E-mail addresses; none: the alerts are seen in the portal alone.')
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

var told = empty(recipients) ? [] : [people.id]

// The service answers 429 over a deployment's capacity. A few are ordinary: the app waits, or asks the second account.
resource rateLimit 'Microsoft.Insights/metricAlerts@2026-01-01' = [
  for (id, index) in openAiIds: {
    name: 'model-rate-limit-${index + 1}'
    location: 'global'
    tags: tags
    properties: {
      description: 'The model service refused more than 10 requests in 5 minutes (429): raise the capacity, or slow the callers.'
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
      actions: [for group in told: { actionGroupId: group }]
    }
  }
]

var rules = [
  {
    name: 'server-errors'
    description: 'More than 5 % of the requests of 15 minutes were answered with a 5xx.'
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
    description: 'The daily cost summary failed, could not be mailed, or did not run.'
    severity: 2
    query: loadTextContent('../queries/alert-summary.kql')
    column: ''
    threshold: 0
    every: 'PT1H'
    window: 'P2D'
    // By a person: two days after the last logged run the query finds nothing, whether the timer runs again or not.
    resolves: false
  }
]

var costRule = {
  name: 'daily-cost'
  description: 'A day cost more than ${dailyCostUsd} USD. The morning after, from the ledger; the budget watches the bill itself.'
  severity: 2
  query: loadTextContent('../queries/alert-daily-cost.kql')
  column: 'CostUsd'
  threshold: dailyCostUsd
  every: 'PT1H'
  // Not a whole day: Azure tells nobody again before two hours found nothing, and the next dear day would pass unsaid.
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
      ...(rule.resolves ? {} : { muteActionsDuration: 'P1D' }) // or it would be mailed again every hour
      skipQueryValidation: true // a workspace that has just been made knows no tables yet
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
      actions: { actionGroups: told }
    }
  }
]
