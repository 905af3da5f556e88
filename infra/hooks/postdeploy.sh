#!/bin/sh
# Prints the app's URL and an example request.
set -eu

cat <<EOF

The chat page:  $AZURE_FUNCTION_APP_URL/chat

With curl (the first line gets the function key):

  KEY=\$(az functionapp keys list -g '$AZURE_RESOURCE_GROUP' -n $AZURE_FUNCTION_APP_NAME --query functionKeys.default -o tsv)
  curl -sS $AZURE_FUNCTION_APP_URL/api/chat -H "x-functions-key: \$KEY" -H 'Content-Type: application/json' -d '{"message": "Say hello."}'

A 503 in the first minutes means that the role assignments do not apply yet. Try again after Retry-After.
EOF
