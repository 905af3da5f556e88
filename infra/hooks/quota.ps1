# Lowers the capacity of the default models to the quota that is left in their regions, if that is less. azd compares
# the two as well, but lowers nothing. Nothing here is an error, also if az does not answer.
$ErrorActionPreference = 'Continue'

# What exists already is not checked: it is part of the quota in use. Nothing is deployed to an existing account. `azd
# provision` requests subscription and region after this hook at the first provisioning, `azd up` before it.
if (-not $env:AZURE_SUBSCRIPTION_ID -or $env:EXISTING_OPENAI_NAME) { exit 0 }
if (-not (Get-Command az -ErrorAction SilentlyContinue)) { exit 0 }

# Whether a run that failed has left an account, which may hold the rest of the quota itself.
function Test-Repeated {
    (-not $env:AZURE_OPENAI_DEPLOYMENTS) -and [bool](az resource list --subscription $env:AZURE_SUBSCRIPTION_ID --output tsv `
            --tag "azd-env-name=$($env:AZURE_ENV_NAME)" --query "[?type=='Microsoft.CognitiveServices/accounts'].name" 2>$null)
}

# $least is the capacity for which azd offers a region.
function Set-Capacity([string]$model, [int]$capacity, [int]$least, [string]$variable) {
    $place = ''
    foreach ($region in @($env:AZURE_LOCATION, $env:OPENAI_SECONDARY_LOCATION)) {
        if (-not $region) { continue }
        $quota = az cognitiveservices usage list --subscription $env:AZURE_SUBSCRIPTION_ID --location $region --output tsv `
            --query "[?name.value=='OpenAI.GlobalStandard.$model'].[limit, currentValue]" 2>$null
        if ($LASTEXITCODE -ne 0) { continue }
        if ("$quota" -notmatch '^[0-9.\s]*$') { continue } # such as None
        # Two numbers, such as 350.0 and 20.0, or none if the region does not have the model.
        $numbers = @(-split $quota | ForEach-Object { [int][double]::Parse($_, [cultureinfo]::InvariantCulture) }) + 0, 0
        $left = $numbers[0] - $numbers[1]
        if ($left -lt $capacity) { $capacity = $left; $place = $region }
    }
    if (-not $place -or (Test-Repeated)) { return }
    if ($capacity -lt $least) {
        Write-Host @"

The model $model needs a quota of at least $least in $place; $capacity is left. Provisioning will probably fail.
- Request quota in the portal, or choose another region or another model: see docs/deploying.md, "Quota".
"@
        if ($variable -ceq 'EMBEDDING_CAPACITY') {
            Write-Host "- Or leave the model out: azd env set EMBEDDING_DEPLOYMENT '{}'"
        }
        return
    }
    azd env set $variable $capacity --environment $env:AZURE_ENV_NAME
    Write-Host @"

The quota left for $model in $place is $capacity: it gets that capacity, in thousands of tokens a minute.
- Raise it once there is more: azd env set $variable NUMBER, then azd provision.
"@
}

if (-not "$($env:MODEL_DEPLOYMENTS)$($env:AZURE_OPENAI_DEPLOYMENTS)") {
    Set-Capacity gpt-5.4-mini ($env:MODEL_CAPACITY ? $env:MODEL_CAPACITY : 20) 5 MODEL_CAPACITY
}
if (-not "$($env:EMBEDDING_DEPLOYMENT)$($env:AZURE_OPENAI_EMBEDDING_DEPLOYMENTS)") {
    Set-Capacity text-embedding-3-small ($env:EMBEDDING_CAPACITY ? $env:EMBEDDING_CAPACITY : 50) 1 EMBEDDING_CAPACITY
}
exit 0
