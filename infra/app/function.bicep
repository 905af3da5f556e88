// The function app and its Flex Consumption plan.

@description('Name of the plan.')
param planName string

@description('Name of the app.')
param name string

@description('Region.')
param location string

@description('Tags.')
param tags object

@description('Name of the service in azure.yaml that azd deploys to this app.')
param serviceName string

@description('Resource ID of the app\'s identity.')
param identityId string

@description('Client ID of the app\'s identity.')
param identityClientId string

@description('Name of the storage account.')
param storageAccountName string

@description('URL of the storage account\'s blobs.')
param blobEndpoint string

@description('Container of the deployment package.')
param packageContainerName string

@description('Connection string of Application Insights.')
param applicationInsightsConnectionString string

@description('Requests that an instance serves at once.')
param httpConcurrency int

@description('Maximum number of instances of each function group.')
param maximumInstances int

@description('Instances kept warm for HTTP, which are billed all the time.')
param alwaysReadyInstances int

@description('Whether a deployment lets running turns finish (preview).')
param rollingUpdates bool

@description('Subnet for the app\'s outbound traffic; empty for none.')
param subnetId string

@description('The app\'s own settings.')
param settings object

// checkov:skip=CKV_AZURE_225: zone redundancy needs two instances kept ready in each function group, which an idle app should not pay for
resource plan 'Microsoft.Web/serverfarms@2025-03-01' = {
  name: planName
  location: location
  tags: tags
  kind: 'functionapp'
  sku: { name: 'FC1', tier: 'FlexConsumption' }
  properties: { reserved: true } // Linux
}

// checkov:skip=CKV_AZURE_17: callers are people and programs without certificates
// checkov:skip=CKV_AZURE_78: Flex has no FTP and rejects ftpsState; publishing passwords are off, see below
// checkov:skip=CKV_AZURE_212: serverless: no instance is kept warm unless alwaysReadyInstances is set
// checkov:skip=CKV_AZURE_213: Flex replaces unhealthy instances by itself
// checkov:skip=CKV_AZURE_222: it is a public API for callers with a key
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
        // Python's default is 1; an open stream would then occupy a whole instance.
        triggers: { http: { perInstanceConcurrency: httpConcurrency } }
      }
      // Always sent: left out, Azure could keep the former one.
      #disable-next-line BCP037 // a preview that the Bicep types lack
      siteUpdateStrategy: { type: rollingUpdates ? 'RollingUpdate' : 'Recreate' }
    }
  }
}

// azd deploys as the signed-in principal, so publishing passwords are not needed. Azure has rejected these resources
// without a location, which the Bicep types lack (bicep-types-az#1527).
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
    AZURE_CLIENT_ID: identityClientId // otherwise DefaultAzureCredential requests a system-assigned identity
    APPLICATIONINSIGHTS_CONNECTION_STRING: applicationInsightsConnectionString
    APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${identityClientId};Authorization=AAD'
    AzureWebJobsDisableHomepage: 'true' // otherwise `/` is the platform's page
    // Beside the URI: with the URI alone, the host sometimes answered 401 to valid keys (azure-functions-host#11787).
    AzureWebJobsStorage__accountName: storageAccountName
    AzureWebJobsStorage__blobServiceUri: blobEndpoint
    AzureWebJobsStorage__clientId: identityClientId
    AzureWebJobsStorage__credential: 'managedidentity'
  }
  dependsOn: [ftp, scm] // change the app one step at a time
}

@description('Name of the app.')
output name string = app.name

@description('URL of the app.')
output url string = 'https://${app.properties.defaultHostName}'
