#!/bin/sh
# Writes settings for a local run against the provisioned resources: no secrets, and a separate table prefix.
set -eu

file=".azure/$AZURE_ENV_NAME/local.settings.json"
mkdir -p "$(dirname "$file")"
cat >"$file" <<EOF
{
  "IsEncrypted": false,
  "Values": {
    "AZURE_OPENAI_ENDPOINT": "$AZURE_OPENAI_ENDPOINT",
    "AZURE_OPENAI_MODEL": "$AZURE_OPENAI_MODEL",
    "AZURE_OPENAI_DEPLOYMENTS": "$AZURE_OPENAI_DEPLOYMENTS",
    "AZURE_OPENAI_EMBEDDING_DEPLOYMENTS": "${AZURE_OPENAI_EMBEDDING_DEPLOYMENTS:-}",
    "AZURE_OPENAI_REASONING_EFFORT": "none",
    "TABLES_ENDPOINT": "$TABLES_ENDPOINT",
    "TABLE_PREFIX": "local",
    "SUMMARY_SCHEDULE": "0 0 6 * * *"
  }
}
EOF
echo "To run the app here against Azure (sign in with az login first):"
echo "  python3 -m local run --settings '$file'"
