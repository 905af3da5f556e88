#!/bin/sh
# Prints the app's URL and an example request.
set -eu

url=$AZURE_FUNCTION_APP_URL
echo
echo "The chat page:  $url/chat"
echo
if [ "${AUTH:-}" = entra ]; then
  cat <<EOF
With curl (the first line gets your access token, for about an hour):

  TOKEN=\$(az account get-access-token --scope api://$AUTH_CLIENT_ID/.default --query accessToken -o tsv)
  curl -sS $url/api/chat -H "Authorization: Bearer \$TOKEN" -H 'Content-Type: application/json' -d '{"message": "Say hello."}'
EOF
else
  cat <<EOF
With curl (the first line gets the function key):

  KEY=\$(az functionapp keys list -g '$AZURE_RESOURCE_GROUP' -n $AZURE_FUNCTION_APP_NAME --query functionKeys.default -o tsv)
  curl -sS $url/api/chat -H "x-functions-key: \$KEY" -H 'Content-Type: application/json' -d '{"message": "Say hello."}'
EOF
fi
cat <<EOF

A 503 in the first minutes means that the role assignments do not apply yet. Try again after Retry-After.
EOF
