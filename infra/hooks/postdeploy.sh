#!/bin/sh
# Says where the app is, and how to ask it.
set -eu

cat <<EOF

The chat page:  $AZURE_FUNCTION_APP_URL/chat

By curl, with the function key that the first line fetches:

  KEY=\$(az functionapp keys list -g '$AZURE_RESOURCE_GROUP' -n $AZURE_FUNCTION_APP_NAME --query functionKeys.default -o tsv)
  curl -sS $AZURE_FUNCTION_APP_URL/api/chat -H "x-functions-key: \$KEY" -H 'Content-Type: application/json' -d '{"message": "Say hello."}'

A 503 in the first minutes means that the roles have not spread yet: try again after Retry-After.
EOF
