#!/bin/sh
# Prints the app's limits, and the deployments whose price is not known. Nothing here is an error.
set -eu

if [ -n "${APP_LIMITS:-}" ]; then
  echo "The app's limits: $APP_LIMITS"
else
  echo "The app has no limits."
fi
if [ -n "${UNPRICED_DEPLOYMENTS:-}" ]; then
  cat <<EOF

No price is known for $UNPRICED_DEPLOYMENTS
- Calls whose price is not known have no cost. A limit in USD refuses them.
- The default limits in USD are off as long as a deployment has no price.
- Name the price of each, in USD per 1M tokens (embedding models have no output price), then run azd provision:
  azd env set PRICES '{"${UNPRICED_DEPLOYMENTS%%=*}": {"input": INPUT, "output": OUTPUT}}'
EOF
fi
