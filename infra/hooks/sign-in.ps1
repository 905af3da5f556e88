# With AUTH=entra: registers the app in Microsoft Entra ID, unless AUTH_CLIENT_ID names a registration. Stops azd where
# sign-in is half configured, or can't be. AUTH_CLIENT_ID is stored last: until then each run goes on with what the run
# before it registered, which it finds by the tag AUTH_REGISTRATION. After that what people change stays as it is.
$ErrorActionPreference = 'Continue'

$azure_cli = '04b07795-8ddb-461a-bbee-02f9e1bf7b46' # gets tokens for curl: az account get-access-token
$scope = '35734d97-ce5c-4adc-81a4-ca66fe934c45' # these ids only have to differ within the registration
$user_role = '17821afe-1c94-4281-a35d-ac89f8dedde7'
$admin_role = '072796d3-1503-4e8e-864a-3974b6c09f7c'

function Stop-Hook($message) {
    Write-Host "`n$message"
    exit 1
}

$guid = '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'

if (-not $env:AUTH) {
    $names = 'AUTH_CLIENT_ID', 'AUTH_TENANT_ID', 'AUTH_ROLES', 'AUTH_ACCEPT', 'AUTH_AUTHORITY'
    $names = @($names | Where-Object { [Environment]::GetEnvironmentVariable($_) })
    # The hook's own values stay when people's sign-in is switched off.
    if (-not $names -or $env:AUTH_REGISTRATION) { exit 0 }
    Stop-Hook "People would not sign in: $names needs AUTH too. Run azd env set AUTH entra, or set these to ''."
}
if ($env:AUTH -cne 'entra') {
    Stop-Hook "AUTH is '$($env:AUTH)'. Set entra, or '' for none: azd env set AUTH entra"
}
if ($env:AUTH_TENANT_ID -and $env:AUTH_TENANT_ID -notmatch $guid) {
    Stop-Hook "AUTH_TENANT_ID is '$($env:AUTH_TENANT_ID)'. Set the directory (tenant) ID, such as 11111111-2222-3333-4444-555555555555."
}
if ($env:AUTH_CLIENT_ID) {
    if ($env:AUTH_CLIENT_ID -match $guid) { exit 0 }
    Stop-Hook "AUTH_CLIENT_ID is '$($env:AUTH_CLIENT_ID)'. Set the application (client) ID, such as 11111111-2222-3333-4444-555555555555."
}
# What a pipeline stores is lost, so each run would register the app again.
if ($env:CI -or $env:TF_BUILD) {
    Stop-Hook "A pipeline doesn't register the app. Run azd provision on your machine, then azd pipeline config."
}

$tenant = if (Get-Command az -ErrorAction SilentlyContinue) { az account show --query tenantId --output tsv 2>$null }
if (-not $tenant) { Stop-Hook 'az is missing or not signed in. Run az login, then this again.' }
# Unknown at the first provisioning: azd asks for the subscription after this hook.
$expected = $env:AUTH_TENANT_ID
if (-not $expected -and $env:AZURE_SUBSCRIPTION_ID) {
    $expected = az account show --subscription $env:AZURE_SUBSCRIPTION_ID --query tenantId --output tsv 2>$null
    if (-not $expected) {
        Stop-Hook "az is signed in, but not to the subscription $($env:AZURE_SUBSCRIPTION_ID). Run az login, then this again."
    }
}
if ($expected -and $expected -ne $tenant) {
    Stop-Hook "az is signed in to the tenant $tenant, and the app belongs to $expected. Run az login --tenant $expected, then this again."
}
$graph_url = az cloud show --query endpoints.microsoftGraphResourceId --output tsv
if (-not $graph_url) { exit 1 }
$graph_url = "$($graph_url.TrimEnd('/'))/v1.0"

$errors = New-TemporaryFile
$body = New-TemporaryFile

function Show-Instructions {
    Write-Host @"

You may not register applications in the tenant $tenant. Ask someone with the role Application Developer for a
registration with these properties (Microsoft Entra admin center, App registrations):
- Supported account types: this organizational directory only. No secret, no certificate.
- Expose an API: the Application ID URI api://CLIENT_ID, and the scope access_as_user (admins and users).
- Expose an API, Authorized client applications: $azure_cli (Azure CLI) with that scope.
- Manifest: api.requestedAccessTokenVersion is 2.
- App roles: Chat.User and Chat.Admin, for both users/groups and applications.
- Authentication: the platform Single-page application; after the first azd up, its redirect URIs https://APP/chat and https://APP/usage.
- Authentication: Allow public client flows is Yes (isFallbackPublicClient).
Then bring it:
  azd env set AUTH_TENANT_ID $tenant
  azd env set AUTH_CLIENT_ID CLIENT_ID
"@
}

# Calls Microsoft Graph. Its replicas know what was just made only seconds later.
function Invoke-Graph {
    foreach ($wait in 1, 2, 4, 8, 16, 0) {
        $answer = az rest --output tsv @args 2>$errors
        if ($LASTEXITCODE -eq 0) { return $answer }
        $problem = Get-Content -Raw $errors
        if ($problem -notmatch 'Not Found\(|Bad Request\(|Too Many Requests\(') { break }
        Start-Sleep -Seconds $wait
    }
    Write-Host $problem
    if ($problem -match 'Authorization_RequestDenied') {
        Show-Instructions
    }
    else {
        Write-Host "`nThe app was not registered; the error is above. The next azd provision goes on from here."
    }
    exit 1
}

# Stores a value in azd's environment.
function Set-Value($name, $value) {
    azd env set $name $value --environment $env:AZURE_ENV_NAME
    if ($LASTEXITCODE -ne 0) { exit 1 }
}

try {
    $registration = $env:AUTH_REGISTRATION
    if (-not $registration) {
        $registration = "serverless-chat-api-$([guid]::NewGuid().ToString('N').Substring(0, 16))"
        Set-Value AUTH_REGISTRATION $registration
    }
    $registered = @(Invoke-Graph --method get --query "value[].[id, appId]" `
            --url "$graph_url/applications?`$filter=tags/any(tag:tag eq '$registration')&`$select=id,appId")
    if (-not $registered) {
        Set-Content $body @"
{
  "displayName": "serverless-chat-api ($($env:AZURE_ENV_NAME))",
  "tags": ["$registration"],
  "signInAudience": "AzureADMyOrg",
  "isFallbackPublicClient": true,
  "api": {
    "requestedAccessTokenVersion": 2,
    "oauth2PermissionScopes": [
      {
        "id": "$scope",
        "value": "access_as_user",
        "type": "User",
        "isEnabled": true,
        "adminConsentDisplayName": "Chat as the signed-in person",
        "adminConsentDescription": "Lets a client call the chat API as the signed-in person.",
        "userConsentDisplayName": "Chat as you",
        "userConsentDescription": "Lets a client call the chat API as you."
      }
    ]
  },
  "appRoles": [
    {
      "id": "$user_role",
      "value": "Chat.User",
      "displayName": "Chat user",
      "description": "May chat.",
      "allowedMemberTypes": ["User", "Application"],
      "isEnabled": true
    },
    {
      "id": "$admin_role",
      "value": "Chat.Admin",
      "displayName": "Chat administrator",
      "description": "May chat, and see what everyone's use costs.",
      "allowedMemberTypes": ["User", "Application"],
      "isEnabled": true
    }
  ]
}
"@
        $registered = @(Invoke-Graph --method post --url "$graph_url/applications" --body "@$body" --query "[id, appId]")
    }
    $ids = @(-split "$registered") # two of each registration
    if ($ids.Count -ne 2) {
        Stop-Hook "More than one registration has the tag $registration. Delete all but one: az ad app delete --id ..., or set AUTH_CLIENT_ID."
    }
    $id, $client_id = $ids

    # These name the registration's own ids, so they can't be part of the first request.
    Set-Content $body @"
{
  "identifierUris": ["api://$client_id"],
  "api": {
    "preAuthorizedApplications": [{"appId": "$azure_cli", "delegatedPermissionIds": ["$scope"]}]
  }
}
"@
    Invoke-Graph --method patch --url "$graph_url/applications/$id" --body "@$body"

    $principal = Invoke-Graph --method get --query "value[].[id]" `
        --url "$graph_url/servicePrincipals?`$filter=appId eq '$client_id'&`$select=id,appId"
    if (-not $principal) {
        Set-Content $body "{`"appId`": `"$client_id`"}"
        Invoke-Graph --method post --url "$graph_url/servicePrincipals" --body "@$body" --query "[id]" | Out-Null
    }

    Set-Value AUTH_TENANT_ID $tenant
    Set-Value AUTH_CLIENT_ID $client_id
    Write-Host @"

People of the tenant $tenant sign in to the app with the registration
"serverless-chat-api ($($env:AZURE_ENV_NAME))", AUTH_CLIENT_ID $client_id. azd down leaves it.
"@
}
finally {
    Remove-Item $errors, $body
}
exit 0
