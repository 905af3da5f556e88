# Says where the app is, and how to ask it.
$ErrorActionPreference = 'Stop'

Write-Host @"

The chat page:  $($env:AZURE_FUNCTION_APP_URL)/chat

By PowerShell, with the function key that the first line fetches:

  `$key = az functionapp keys list -g '$($env:AZURE_RESOURCE_GROUP)' -n $($env:AZURE_FUNCTION_APP_NAME) --query functionKeys.default -o tsv
  Invoke-RestMethod $($env:AZURE_FUNCTION_APP_URL)/api/chat -Method Post -Headers @{ 'x-functions-key' = `$key } -ContentType application/json -Body '{"message": "Say hello."}'

A 503 in the first minutes means that the roles have not spread yet: try again after Retry-After.
"@
