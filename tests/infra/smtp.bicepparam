// The daily summary by SMTP.
using '../../infra/main.bicep'

param environmentName = 'test'
param location = 'swedencentral'
param principalId = '11111111-1111-1111-1111-111111111111'

param summaryRecipients = 'ada@example.com'
param summarySender = 'chat@example.com'
param mailTransport = 'smtp'
param smtpUrl = 'smtps://user:not-a-password@mail.example.com:465'
