// The app: a Flex Consumption plan, and the function app on it.

@description('Name of the plan.')
param planName string

@description('Name of the app.')
param name string

@description('Region.')
param location string

@description('Tags.')
param tags object

@description('The service in azure.yaml that is deployed here.')
param serviceName string

@description('Resource id of the app\'s identity.')
param identityId string

@description('Client id of the app\'s identity.')
param identityClientId string

@description('Where the storage account\'s blobs are.')
param blobEndpoint string

@description('Container of the deployment package.')
param packageContainerName string

@description('Where telemetry goes.')
param applicationInsightsConnectionString string

@description('Requests that an instance serves at once.')
param httpConcurrency int

@description('The most instances.')
param maximumInstances int

@description('Instances for HTTP that are kept warm and paid for all the time.')
param alwaysReadyInstances int

@description('Whether a deployment lets running turns finish (preview).')
param rollingUpdates bool

@description('Subnet that the app sends through; empty for none.')
param subnetId string

@description('The app\'s own settings.')
param settings object

// checkov:skip=CKV_AZURE_225: zone redundancy needs two instances kept ready in each function group, which idle apps should not pay for
resource plan 'Microsoft.Web/serverfarms@2025-03-01' = {
  name: planName
  location: location
  tags: tags
  kind: 'functionapp'
  sku: { name: 'FC1', tier: 'FlexConsumption' }
  properties: { reserved: true } // Linux
}

// checkov:skip=CKV_AZURE_17: callers are people and programs without certificates
// checkov:skip=CKV_AZURE_78: Flex has no FTP and refuses ftpsState; the publishing password is off, below
// checkov:skip=CKV_AZURE_212: serverless: no instance is kept unless alwaysReadyInstances says so
// checkov:skip=CKV_AZURE_213: Flex replaces its instances by itself
// checkov:skip=CKV_AZURE_222: it is an API for everybody who has a key
resource app 'Microsoft.Web/sites@2025-03-01' = {
  name: name
  location: location
  tags: { ...tags, 'azd-service-name': serviceName }
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identityId}': {} }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    keyVaultReferenceIdentity: identityId
    virtualNetworkSubnetId: empty(subnetId) ? null : subnetId
    siteConfig: {
      http20Enabled: true
      minTlsVersion: '1.2'
      scmMinTlsVersion: '1.2'
    }
    #disable-next-line BCP037 // siteUpdateStrategy, below, is a preview that the types do not know yet
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: '${blobEndpoint}/${packageContainerName}'
          authentication: {
            type: 'UserAssignedIdentity'
            userAssignedIdentityResourceId: identityId
          }
        }
      }
      runtime: { name: 'python', version: '3.13' }
      scaleAndConcurrency: {
        instanceMemoryMB: 2048
        maximumInstanceCount: maximumInstances
        alwaysReady: alwaysReadyInstances == 0 ? [] : [{ name: 'http', instanceCount: alwaysReadyInstances }]
        // Python's default is 1, and then a stream that is open holds a whole instance for itself.
        triggers: { http: { perInstanceConcurrency: httpConcurrency } }
      }
      ...(rollingUpdates ? { siteUpdateStrategy: { type: 'RollingUpdate' } } : {})
    }
  }
}

// azd deploys as who is signed in; nobody needs a publishing password. Azure has refused these without a location, which
// the types do not know (bicep-types-az#1527).
resource ftp 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2025-03-01' = {
  parent: app
  name: 'ftp'
  #disable-next-line BCP187 // as above
  location: location
  properties: { allow: false }
}

resource scm 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2025-03-01' = {
  parent: app
  name: 'scm'
  #disable-next-line BCP187 // as above
  location: location
  properties: { allow: false }
}

resource appSettings 'Microsoft.Web/sites/config@2025-03-01' = {
  parent: app
  name: 'appsettings'
  properties: {
    ...settings
    AZURE_CLIENT_ID: identityClientId // without it DefaultAzureCredential would ask for an identity that is not there
    APPLICATIONINSIGHTS_CONNECTION_STRING: applicationInsightsConnectionString
    APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${identityClientId};Authorization=AAD'
    AzureWebJobsStorage__blobServiceUri: blobEndpoint
    AzureWebJobsStorage__clientId: identityClientId
    AzureWebJobsStorage__credential: 'managedidentity'
  }
  dependsOn: [ftp, scm] // one change of the app at a time
}

@description('Name of the app.')
output name string = app.name

@description('URL of the app.')
output url string = 'https://${app.properties.defaultHostName}'
