# Prints the app's URL and an example request.
$ErrorActionPreference = 'Stop'

$url = $env:AZURE_FUNCTION_APP_URL
Write-Host "`nThe chat page:  $url/chat`n"
if ($env:AUTH -ceq 'entra') {
    Write-Host @"
With PowerShell (the first line gets your access token, for about an hour):

  `$token = az account get-access-token --scope api://$($env:AUTH_CLIENT_ID)/.default --query accessToken -o tsv
  Invoke-RestMethod $url/api/chat -Method Post -Headers @{ 'Authorization' = "Bearer `$token" } -ContentType application/json -Body '{"message": "Say hello."}'
"@
}
else {
    Write-Host @"
With PowerShell (the first line gets the function key):

  `$key = az functionapp keys list -g '$($env:AZURE_RESOURCE_GROUP)' -n $($env:AZURE_FUNCTION_APP_NAME) --query functionKeys.default -o tsv
  Invoke-RestMethod $url/api/chat -Method Post -Headers @{ 'x-functions-key' = `$key } -ContentType application/json -Body '{"message": "Say hello."}'
"@
}
Write-Host @"

A 503 in the first minutes means that the role assignments do not apply yet. Try again after Retry-After.
"@
