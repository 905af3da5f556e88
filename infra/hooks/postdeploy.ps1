# Prints the app's URL and an example request.
$ErrorActionPreference = 'Stop'

Write-Host @"

The chat page:  $($env:AZURE_FUNCTION_APP_URL)/chat

With PowerShell (the first line gets the function key):

  `$key = az functionapp keys list -g '$($env:AZURE_RESOURCE_GROUP)' -n $($env:AZURE_FUNCTION_APP_NAME) --query functionKeys.default -o tsv
  Invoke-RestMethod $($env:AZURE_FUNCTION_APP_URL)/api/chat -Method Post -Headers @{ 'x-functions-key' = `$key } -ContentType application/json -Body '{"message": "Say hello."}'

A 503 in the first minutes means that the role assignments do not apply yet. Try again after Retry-After.
"@
