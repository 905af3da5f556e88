// The virtual network: a subnet for the app's outbound traffic, and one with a private endpoint for each service.

@description('Name of the network.')
param name string

@description('Name of the network security group.')
param securityGroupName string

@description('Prefix of the private endpoints\' names.')
param endpointPrefix string

@description('Region.')
param location string

@description('Tags.')
param tags object

@export()
@description('A service with a private endpoint.')
type private = {
  @description('Short name.')
  name: string

  @description('Resource ID of the service.')
  id: string

  @description('Sub-resource (group ID) of the service; account is for Azure OpenAI.')
  group: 'account' | 'blob' | 'table' | 'vault'
}

@description('Services that get a private endpoint.')
param services private[]

// https://learn.microsoft.com/azure/private-link/private-endpoint-dns
var zones = {
  account: 'privatelink.openai.azure.com'
  blob: 'privatelink.blob.${environment().suffixes.storage}'
  table: 'privatelink.table.${environment().suffixes.storage}'
  vault: 'privatelink.vaultcore.azure.net'
}
var groups = union(map(services, service => service.group), []) // without duplicates

// No custom rules: the platform's default rules allow inbound traffic only from this network.
resource securityGroup 'Microsoft.Network/networkSecurityGroups@2026-03-01' = {
  name: securityGroupName
  location: location
  tags: tags
}

resource network 'Microsoft.Network/virtualNetworks@2026-03-01' = {
  name: name
  location: location
  tags: tags
  properties: {
    addressSpace: { addressPrefixes: ['10.0.0.0/24'] }
    subnets: [
      {
        name: 'app'
        properties: {
          addressPrefix: '10.0.0.0/26'
          networkSecurityGroup: { id: securityGroup.id }
          delegations: [{ name: 'flex', properties: { serviceName: 'Microsoft.App/environments' } }]
        }
      }
      {
        name: 'endpoints'
        properties: {
          addressPrefix: '10.0.0.64/26'
          networkSecurityGroup: { id: securityGroup.id }
          privateEndpointNetworkPolicies: 'Enabled'
        }
      }
    ]
  }

  resource app 'subnets' existing = { name: 'app' }
  resource endpoints 'subnets' existing = { name: 'endpoints' }
}

resource dns 'Microsoft.Network/privateDnsZones@2024-06-01' = [
  for group in groups: {
    name: zones[group]
    location: 'global'
    tags: tags
  }
]

resource links 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2024-06-01' = [
  for (group, index) in groups: {
    parent: dns[index]
    name: name
    location: 'global'
    tags: tags
    properties: {
      registrationEnabled: false
      // An existing account may have a private endpoint in another network, which this zone lacks: then its name is
      // resolved publicly. https://learn.microsoft.com/azure/dns/private-dns-fallback
      ...(group == 'account' ? { resolutionPolicy: 'NxDomainRedirect' } : {})
      virtualNetwork: { id: network.id }
    }
  }
]

@batchSize(1) // storage may reject its second endpoint while the first is being created (bicep-registry-modules#6001)
resource privateEndpoints 'Microsoft.Network/privateEndpoints@2026-03-01' = [
  for service in services: {
    name: '${endpointPrefix}${service.name}'
    location: location
    tags: tags
    properties: {
      subnet: { id: network::endpoints.id }
      privateLinkServiceConnections: [
        {
          name: service.name
          properties: {
            #disable-next-line use-resource-id-functions // the ID is a parameter
            privateLinkServiceId: service.id
            groupIds: [service.group]
          }
        }
      ]
    }
  }
]

resource records 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2026-03-01' = [
  for (service, index) in services: {
    parent: privateEndpoints[index]
    name: 'default'
    properties: {
      privateDnsZoneConfigs: [
        {
          name: service.name
          properties: { privateDnsZoneId: resourceId('Microsoft.Network/privateDnsZones', zones[service.group]) }
        }
      ]
    }
    dependsOn: [dns]
  }
]

@description('Subnet for the app\'s outbound traffic.')
output appSubnetId string = network::app.id
