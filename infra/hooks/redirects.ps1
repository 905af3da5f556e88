# Where people sign in: adds the pages' addresses, which are known once the app is provisioned, to the redirect addresses
# of the registration that sign-in.ps1 made. Others stay. A failure is reported and stops nothing.
$ErrorActionPreference = 'Continue'

if ($env:AUTH -cne 'entra') { exit 0 }
$chat = "$($env:AZURE_FUNCTION_APP_URL)/chat"
$usage = "$($env:AZURE_FUNCTION_APP_URL)/usage"

function Show-Report($what) {
    Write-Host @"

The registration $($env:AUTH_CLIENT_ID) $what. Otherwise the pages can't sign anyone in (AADSTS50011).
Its redirect URIs of the platform Single-page application have to include:
  $chat
  $usage
"@
    exit 0
}

if (-not $env:AUTH_REGISTRATION) { Show-Report "is not changed from here: check its addresses" }
$errors = New-TemporaryFile
$body = New-TemporaryFile
function Show-Failure {
    Write-Host (Get-Content -Raw $errors)
    Show-Report "could not be changed; the error is above. Run azd provision again, or ask an owner"
}

try {
    if (-not (Get-Command az -ErrorAction SilentlyContinue)) {
        Set-Content $errors 'az is missing.'
        Show-Failure
    }
    $graph = az cloud show --query endpoints.microsoftGraphResourceId --output tsv 2>$errors
    if ($LASTEXITCODE -ne 0) { Show-Failure }
    $graph = "$($graph.TrimEnd('/'))/v1.0"
    $registered = @(az rest --method get --url "$graph/applications?`$filter=tags/any(tag:tag eq '$($env:AUTH_REGISTRATION)')" --output tsv `
            --query "value[?appId=='$($env:AUTH_CLIENT_ID)'].[[id], spa.redirectUris][][]" 2>$errors)
    if ($LASTEXITCODE -ne 0) { Show-Failure }
    if (-not $registered) { Show-Report "was not made here, or is deleted: check its addresses" }
    $id, $present = $registered # its id, then its redirect addresses
    $missing = @($chat, $usage | Where-Object { $_ -notin $present })
    if (-not $missing) { exit 0 }
    $addresses = @(@($present) + $missing | Where-Object { $_ } | ForEach-Object { "`"$_`"" }) -join ', '
    Set-Content $body "{`"spa`": {`"redirectUris`": [$addresses]}}"
    az rest --method patch --url "$graph/applications/$id" --body "@$body" --output none 2>$errors
    if ($LASTEXITCODE -ne 0) { Show-Failure }
    Write-Host "People can sign in at $chat and $usage."
}
finally {
    Remove-Item $errors, $body
}
exit 0
