#!/bin/sh
# Lowers the capacity of the default models to the quota that is left in their regions, if that is less. azd compares
# the two as well, but lowers nothing. Nothing here is an error, also if az does not answer.
set -eu

# What exists already is not checked: it is part of the quota in use. Nothing is deployed to an existing account. `azd
# provision` requests subscription and region after this hook at the first provisioning, `azd up` before it.
if [ -z "${AZURE_SUBSCRIPTION_ID:-}" ] || [ -n "${EXISTING_OPENAI_NAME:-}" ]; then exit 0; fi
if ! command -v az >/dev/null; then exit 0; fi

# Whether a run that failed has left an account, which may hold the rest of the quota itself.
is_repeated() {
  [ -z "${AZURE_OPENAI_DEPLOYMENTS:-}" ] && [ -n "$(az resource list --subscription "$AZURE_SUBSCRIPTION_ID" --output tsv \
    --tag "azd-env-name=$AZURE_ENV_NAME" --query "[?type=='Microsoft.CognitiveServices/accounts'].name" 2>/dev/null)" ]
}

# check MODEL CAPACITY LEAST VARIABLE: LEAST is the capacity for which azd offers a region.
check() {
  model=$1 capacity=$2 least=$3 variable=$4 place=
  case $capacity in *[!0-9]*) return ;; esac # provisioning refuses it
  for region in "${AZURE_LOCATION:-}" "${OPENAI_SECONDARY_LOCATION:-}"; do
    if [ -z "$region" ]; then continue; fi
    quota=$(az cognitiveservices usage list --subscription "$AZURE_SUBSCRIPTION_ID" --location "$region" --output tsv \
      --query "[?name.value=='OpenAI.GlobalStandard.$model'].[limit, currentValue]" 2>/dev/null) || continue
    case $quota in *[!0-9.[:space:]]*) continue ;; esac # such as None
    # shellcheck disable=SC2086 # two numbers, such as 350.0 and 20.0, or none if the region does not have the model
    set -- $quota
    limit=${1:-0} used=${2:-0}
    left=$((${limit%.*} - ${used%.*}))
    if [ "$left" -lt "$capacity" ]; then capacity=$left place=$region; fi
  done
  if [ -z "$place" ] || is_repeated; then return; fi
  if [ "$capacity" -lt "$least" ]; then
    cat <<MESSAGE

The model $model needs a quota of at least $least in $place; $capacity is left. Provisioning will probably fail.
- Request quota in the portal, or choose another region or another model: see docs/deploying.md, "Quota".
MESSAGE
    if [ "$variable" = EMBEDDING_CAPACITY ]; then
      echo "- Or leave the model out: azd env set EMBEDDING_DEPLOYMENT '{}'"
    fi
    return
  fi
  azd env set "$variable" "$capacity" --environment "$AZURE_ENV_NAME"
  cat <<MESSAGE

The quota left for $model in $place is $capacity: it gets that capacity, in thousands of tokens a minute.
- Raise it once there is more: azd env set $variable NUMBER, then azd provision.
MESSAGE
}

if [ -z "${MODEL_DEPLOYMENTS:-}${AZURE_OPENAI_DEPLOYMENTS:-}" ]; then
  check gpt-5.4-mini "${MODEL_CAPACITY:-20}" 5 MODEL_CAPACITY
fi
if [ -z "${EMBEDDING_DEPLOYMENT:-}${AZURE_OPENAI_EMBEDDING_DEPLOYMENTS:-}" ]; then
  check text-embedding-3-small "${EMBEDDING_CAPACITY:-50}" 1 EMBEDDING_CAPACITY
fi
