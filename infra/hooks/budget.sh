#!/bin/sh
# Sets the monthly budget of the resource group: BUDGET_AMOUNT, 0 for none. Not every subscription can have a budget, so
# a failure is reported and stops nothing.
set -eu

amount=${BUDGET_AMOUNT:-50}
if [ "$amount" = 0 ]; then exit 0; fi

group="/subscriptions/$AZURE_SUBSCRIPTION_ID/resourceGroups/$AZURE_RESOURCE_GROUP"
budget="$group/providers/Microsoft.Consumption/budgets/$AZURE_BUDGET_NAME?api-version=2026-06-01"
# A budget's first month can never change, and that of a new one may not be in the past.
start=$(az rest --method get --url "$budget" --query properties.timePeriod.startDate --output tsv 2>/dev/null) || start=
start=${start:-$(date -u +%Y-%m-01)}

if az deployment group create --subscription "$AZURE_SUBSCRIPTION_ID" --resource-group "$AZURE_RESOURCE_GROUP" \
  --name budget --template-file infra/app/budget.bicep --output none --parameters \
  "name=$AZURE_BUDGET_NAME" "amount=$amount" "startDate=$start" "recipients=${SUMMARY_RECIPIENTS:-}"; then
  echo "The monthly budget of $AZURE_RESOURCE_GROUP is $amount."
else
  cat >&2 <<EOF

The budget was not set; the error is above. Nothing else depends on it, so the deployment goes on.
- "not associated with a valid offer type": this subscription can't have budgets. Turn it off: azd env set BUDGET_AMOUNT 0
- az is missing or not signed in: az login. Then set the budget with azd provision.
EOF
fi
