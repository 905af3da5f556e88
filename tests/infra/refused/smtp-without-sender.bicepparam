// Invalid: SMTP without a sender's address.
using '../../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'

param summaryRecipients = 'ada@example.com'
param mailTransport = 'smtp'
param smtpUrl = 'smtps://user:not-a-password@mail.example.com:465'
