# Warns of a region without quota for the default embedding model, and names the switch that leaves the model out. azd
# checks the quota of every model too, but knows no switch. Nothing here is an error, also if az does not answer.
$ErrorActionPreference = 'Continue'

$model = 'text-embedding-3-small'
$capacity = 50
# A deployment that was chosen, or that exists, is not checked; nothing is deployed to an existing account. At the first
# provisioning azd requests subscription and region after this hook, and then offers only regions with quota.
if (-not $env:AZURE_SUBSCRIPTION_ID) { exit 0 }
if ($env:EMBEDDING_DEPLOYMENT -or $env:AZURE_OPENAI_EMBEDDING_DEPLOYMENTS -or $env:EXISTING_OPENAI_NAME) { exit 0 }
if (-not (Get-Command az -ErrorAction SilentlyContinue)) { exit 0 }

foreach ($region in @($env:AZURE_LOCATION, $env:OPENAI_SECONDARY_LOCATION)) {
    if (-not $region) { continue }
    $quota = az cognitiveservices usage list --subscription $env:AZURE_SUBSCRIPTION_ID --location $region --output tsv `
        --query "[?name.value=='OpenAI.GlobalStandard.$model'].[limit, currentValue]" 2>$null
    if ($LASTEXITCODE -ne 0) { continue }
    # Two numbers, such as 350.0 and 20.0, or none if the region does not have the model.
    $numbers = @(-split $quota | ForEach-Object { [int][double]::Parse($_, [cultureinfo]::InvariantCulture) }) + 0, 0
    $left = $numbers[0] - $numbers[1]
    if ($left -ge $capacity) { continue }
    Write-Host @"

The embedding model $model needs a quota of $capacity in $region; $left is left. Provisioning will probably fail.
- Leave the model out: azd env set EMBEDDING_DEPLOYMENT '{}'
- Or choose another model, SKU or capacity: see EMBEDDING_DEPLOYMENT in docs/deploying.md.
"@
}
exit 0
