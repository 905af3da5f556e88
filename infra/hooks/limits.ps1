# Prints the app's limits, and the deployments whose price is not known. Nothing here is an error.
$ErrorActionPreference = 'Stop'

if ($env:APP_LIMITS) {
    Write-Host "The app's limits: $($env:APP_LIMITS)"
}
else {
    Write-Host "The app has no limits."
}
if ($env:UNPRICED_DEPLOYMENTS) {
    Write-Host @"

No price is known for $($env:UNPRICED_DEPLOYMENTS)
- Calls whose price is not known have no cost. A limit in USD refuses them.
- The default limits in USD are off as long as a deployment has no price.
- Name the price of each, in USD per 1M tokens (embedding models have no output price), then run azd provision:
  azd env set PRICES '{"$(($env:UNPRICED_DEPLOYMENTS -split '=')[0])": {"input": INPUT, "output": OUTPUT}}'
"@
}
