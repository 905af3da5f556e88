# Sets the monthly budget of the resource group: BUDGET_AMOUNT, 0 for none. Not every subscription can have a budget, so
# a failure is reported and stops nothing.
$ErrorActionPreference = 'Continue'

$amount = if ($env:BUDGET_AMOUNT) { $env:BUDGET_AMOUNT } else { '50' }
if ($amount -eq '0') { exit 0 }

$start, $succeeded = '', $false
if (Get-Command az -ErrorAction SilentlyContinue) {
    $group = "/subscriptions/$($env:AZURE_SUBSCRIPTION_ID)/resourceGroups/$($env:AZURE_RESOURCE_GROUP)"
    $budget = "$group/providers/Microsoft.Consumption/budgets/$($env:AZURE_BUDGET_NAME)?api-version=2026-06-01"
    # A budget's first month can never change, and that of a new one may not be in the past.
    $start = az rest --method get --url $budget --query properties.timePeriod.startDate --output tsv 2>$null
    if ($LASTEXITCODE -ne 0 -or -not $start) { $start = [DateTime]::UtcNow.ToString('yyyy-MM-01') }

    az deployment group create --subscription $env:AZURE_SUBSCRIPTION_ID --resource-group $env:AZURE_RESOURCE_GROUP `
        --name budget --template-file infra/app/budget.bicep --output none --parameters `
        "name=$($env:AZURE_BUDGET_NAME)" "amount=$amount" "startDate=$start" "recipients=$($env:SUMMARY_RECIPIENTS)"
    $succeeded = $LASTEXITCODE -eq 0
}
if ($succeeded) {
    Write-Host "The monthly budget of $($env:AZURE_RESOURCE_GROUP) is $amount."
}
else {
    Write-Host @"

The budget was not set; the error is above. Nothing else depends on it, so the deployment goes on.
- "not associated with a valid offer type": this subscription can't have budgets. Turn it off: azd env set BUDGET_AMOUNT 0
- az is missing or not signed in: az login. Then set the budget with azd provision.
"@
}
exit 0
