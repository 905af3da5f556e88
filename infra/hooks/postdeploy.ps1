# Waits until the app answers, for about 5 minutes, then prints its URL and an example request. Fails if it answers with
# an error all that time.
$ErrorActionPreference = 'Stop'

$url = $env:AZURE_FUNCTION_APP_URL
$python = '3.13' # as in infra/app/function.bicep

# The status of GET /api/health, which needs no key and no setting; 0 without an answer.
function Get-Health {
    try { (Invoke-WebRequest "$url/api/health" -TimeoutSec 30 -SkipHttpErrorCheck).StatusCode } catch { 0 }
}

# The Python version that the last remote build used, such as 3.11.8; nothing if the log can't be read.
function Get-BuiltWith {
    if (-not (Get-Command az -ErrorAction SilentlyContinue)) { return }
    $log = az functionapp log deployment show -g $env:AZURE_RESOURCE_GROUP -n $env:AZURE_FUNCTION_APP_NAME 2>$null
    $log | Select-String '--platform-version ([0-9.]+)' | Select-Object -Last 1 | ForEach-Object { $_.Matches.Groups[1].Value }
}

Write-Host "Waiting for $url/api/health"
for ($tries = 0; ($status = Get-Health) -ne 200 -and $tries -lt 30; $tries++) { Start-Sleep 10 }
if ($status -eq 0) {
    Write-Host @"

$url/api/health can't be reached from this machine, so it is not known whether the app works.
"@
}
elseif ($status -eq 404) {
    $built = Get-BuiltWith
    if (-not $built -or "$built." -like "$python.*") {
        Write-Host @"

The app has no functions: $url/api/health answers 404. The platform could not load it.
- Usual causes: a remote build with another Python than $python (azure-dev#8538), or no SUMMARY_SCHEDULE.
- The build's log names its Python as --platform-version:
  az functionapp log deployment show -g '$($env:AZURE_RESOURCE_GROUP)' -n $($env:AZURE_FUNCTION_APP_NAME)
- See "All routes answer 404" in docs/troubleshooting.md. Then run azd deploy again.
"@
    }
    else {
        Write-Host @"

The app has no functions: $url/api/health answers 404. The remote build used Python $built instead of $python, so the
packages can't be imported (azure-dev#8538). Run azd deploy again; if that does not help, see "All routes answer 404" in
docs/troubleshooting.md.
"@
    }
    exit 1
}
elseif ($status -ne 200) {
    Write-Host @"

The platform answers $status for $url/api/health. In the first minutes role assignments may not apply yet: wait some
minutes, then run azd deploy. If it stays, see "401, 403 or 503 after a deployment" in docs/troubleshooting.md.
"@
    exit 1
}

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

A 401, 403 or 503 in the first minutes means that role assignments do not apply yet: wait, then run azd deploy.
"@
