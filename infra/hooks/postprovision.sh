#!/bin/sh
# Writes the settings of a local run against what was provisioned: no secret, and tables of its own beside the app's.
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
    "AZURE_OPENAI_REASONING_EFFORT": "none",
    "TABLES_ENDPOINT": "$TABLES_ENDPOINT",
    "TABLE_PREFIX": "local",
    "SUMMARY_SCHEDULE": "0 0 6 * * *"
  }
}
EOF
echo "To run here against Azure, signed in with az login:"
echo "  python3 -m local run --settings '$file'"
