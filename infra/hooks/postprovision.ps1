# Writes settings for a local run against the provisioned resources: no secrets, and a separate table prefix.
$ErrorActionPreference = 'Stop'

$file = ".azure/$($env:AZURE_ENV_NAME)/local.settings.json"
New-Item -ItemType Directory -Force -Path (Split-Path $file) | Out-Null
[ordered]@{
    IsEncrypted = $false
    Values      = [ordered]@{
        AZURE_OPENAI_ENDPOINT              = $env:AZURE_OPENAI_ENDPOINT
        AZURE_OPENAI_MODEL                 = $env:AZURE_OPENAI_MODEL
        AZURE_OPENAI_DEPLOYMENTS           = $env:AZURE_OPENAI_DEPLOYMENTS
        AZURE_OPENAI_EMBEDDING_DEPLOYMENTS = $env:AZURE_OPENAI_EMBEDDING_DEPLOYMENTS
        AZURE_OPENAI_REASONING_EFFORT      = 'none'
        TABLES_ENDPOINT                    = $env:TABLES_ENDPOINT
        TABLE_PREFIX                       = 'local'
        SUMMARY_SCHEDULE                   = '0 0 6 * * *'
    }
} | ConvertTo-Json | Set-Content -Path $file -Encoding utf8
Write-Host 'To run the app here against Azure (sign in with az login first):'
Write-Host "  py -m local run --settings '$file'"
