#!/bin/sh
# Warns of a region without quota for the default embedding model, and names the switch that leaves the model out. azd
# checks the quota of every model too, but knows no switch. Nothing here is an error, also if az does not answer.
set -eu

model=text-embedding-3-small
capacity=50
# A deployment that was chosen, or that exists, is not checked; nothing is deployed to an existing account. At the first
# provisioning azd requests subscription and region after this hook, and then offers only regions with quota.
if [ -z "${AZURE_SUBSCRIPTION_ID:-}" ]; then exit 0; fi
if [ -n "${EMBEDDING_DEPLOYMENT:-}${AZURE_OPENAI_EMBEDDING_DEPLOYMENTS:-}${EXISTING_OPENAI_NAME:-}" ]; then exit 0; fi

for region in "${AZURE_LOCATION:-}" "${OPENAI_SECONDARY_LOCATION:-}"; do
  if [ -z "$region" ]; then continue; fi
  quota=$(az cognitiveservices usage list --subscription "$AZURE_SUBSCRIPTION_ID" --location "$region" --output tsv \
    --query "[?name.value=='OpenAI.GlobalStandard.$model'].[limit, currentValue]" 2>/dev/null) || continue
  # shellcheck disable=SC2086 # two numbers, such as 350.0 and 20.0, or none if the region does not have the model
  set -- $quota
  limit=${1:-0} used=${2:-0}
  left=$((${limit%.*} - ${used%.*}))
  if [ "$left" -ge "$capacity" ]; then continue; fi
  cat <<EOF

The embedding model $model needs a quota of $capacity in $region; $left is left. Provisioning will probably fail.
- Leave the model out: azd env set EMBEDDING_DEPLOYMENT '{}'
- Or choose another model, SKU or capacity: see EMBEDDING_DEPLOYMENT in docs/deploying.md.
EOF
done
