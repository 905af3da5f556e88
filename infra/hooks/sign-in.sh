#!/bin/sh
# With AUTH=entra: registers the app in Microsoft Entra ID, unless AUTH_CLIENT_ID names a registration. Stops azd where
# sign-in is half configured, or can't be. AUTH_CLIENT_ID is stored last: until then each run goes on with what the run
# before it registered, which it finds by the tag AUTH_REGISTRATION. After that what people change stays as it is.
set -eu

azure_cli=04b07795-8ddb-461a-bbee-02f9e1bf7b46 # gets tokens for curl: az account get-access-token
scope=35734d97-ce5c-4adc-81a4-ca66fe934c45     # these ids only have to differ within the registration
user_role=17821afe-1c94-4281-a35d-ac89f8dedde7
admin_role=072796d3-1503-4e8e-864a-3974b6c09f7c

refuse() {
  printf '\n%s\n' "$1" >&2
  exit 1
}

is_guid() { printf '%s\n' "$1" | grep -Eixq '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'; }

case ${AUTH:-} in
  entra) ;;
  '')
    set -- ${AUTH_CLIENT_ID:+AUTH_CLIENT_ID} ${AUTH_TENANT_ID:+AUTH_TENANT_ID} ${AUTH_ROLES:+AUTH_ROLES} \
      ${AUTH_ACCEPT:+AUTH_ACCEPT} ${AUTH_AUTHORITY:+AUTH_AUTHORITY}
    # The hook's own values stay when people's sign-in is switched off.
    if [ $# = 0 ] || [ -n "${AUTH_REGISTRATION:-}" ]; then exit 0; fi
    refuse "People would not sign in: $* needs AUTH too. Run azd env set AUTH entra, or set these to ''."
    ;;
  *) refuse "AUTH is '$AUTH'. Set entra, or '' for none: azd env set AUTH entra" ;;
esac
if [ -n "${AUTH_TENANT_ID:-}" ] && ! is_guid "$AUTH_TENANT_ID"; then
  refuse "AUTH_TENANT_ID is '$AUTH_TENANT_ID'. Set the directory (tenant) ID, such as 11111111-2222-3333-4444-555555555555."
fi
if [ -n "${AUTH_CLIENT_ID:-}" ]; then
  if is_guid "$AUTH_CLIENT_ID"; then exit 0; fi
  refuse "AUTH_CLIENT_ID is '$AUTH_CLIENT_ID'. Set the application (client) ID, such as 11111111-2222-3333-4444-555555555555."
fi
# What a pipeline stores is lost, so each run would register the app again.
if [ -n "${CI:-}${TF_BUILD:-}" ]; then
  refuse "A pipeline doesn't register the app. Run azd provision on your machine, then azd pipeline config."
fi

tenant=$(az account show --query tenantId --output tsv 2>/dev/null) ||
  refuse "az is missing or not signed in. Run az login, then this again."
# Unknown at the first provisioning: azd asks for the subscription after this hook.
expected=${AUTH_TENANT_ID:-}
if [ -z "$expected" ] && [ -n "${AZURE_SUBSCRIPTION_ID:-}" ]; then
  expected=$(az account show --subscription "$AZURE_SUBSCRIPTION_ID" --query tenantId --output tsv 2>/dev/null) ||
    refuse "az is signed in, but not to the subscription $AZURE_SUBSCRIPTION_ID. Run az login, then this again."
fi
if [ "${expected:-$tenant}" != "$tenant" ]; then
  refuse "az is signed in to the tenant $tenant, and the app belongs to $expected. Run az login --tenant $expected, then this again."
fi
graph_url="$(az cloud show --query endpoints.microsoftGraphResourceId --output tsv)"
graph_url="${graph_url%/}/v1.0"

errors=$(mktemp)
body=$(mktemp)
trap 'rm -f "$errors" "$body"' EXIT

instructions() {
  cat >&2 <<EOF2

You may not register applications in the tenant $tenant. Ask someone with the role Application Developer for a
registration with these properties (Microsoft Entra admin center, App registrations):
- Supported account types: this organizational directory only. No secret, no certificate.
- Expose an API: the Application ID URI api://CLIENT_ID, and the scope access_as_user (admins and users).
- Expose an API, Authorized client applications: $azure_cli (Azure CLI) with that scope.
- Manifest: api.requestedAccessTokenVersion is 2.
- App roles: Chat.User and Chat.Admin, for both users/groups and applications.
- Authentication: the platform Single-page application; after the first azd up, its redirect URIs https://APP/chat and https://APP/usage.
- Authentication: Allow public client flows is Yes (isFallbackPublicClient).
Then bring it:
  azd env set AUTH_TENANT_ID $tenant
  azd env set AUTH_CLIENT_ID CLIENT_ID
EOF2
}

# Calls Microsoft Graph. Its replicas know what was just made only seconds later.
graph() {
  for wait in 1 2 4 8 16 0; do
    if az rest --output tsv "$@" 2>"$errors"; then return; fi
    case $(cat "$errors") in
      *'Not Found('* | *'Bad Request('* | *'Too Many Requests('*) sleep $wait ;;
      *) break ;;
    esac
  done
  cat "$errors" >&2
  case $(cat "$errors") in
    *Authorization_RequestDenied*) instructions ;;
    *) printf '\nThe app was not registered; the error is above. The next azd provision goes on from here.\n' >&2 ;;
  esac
  exit 1
}

if [ -z "${AUTH_REGISTRATION:-}" ]; then
  AUTH_REGISTRATION=serverless-chat-api-$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')
  azd env set AUTH_REGISTRATION "$AUTH_REGISTRATION" --environment "$AZURE_ENV_NAME"
fi
registered=$(graph --method get --query "value[].[id, appId]" \
  --url "$graph_url/applications?\$filter=tags/any(tag:tag eq '$AUTH_REGISTRATION')&\$select=id,appId")
if [ -z "$registered" ]; then
  cat >"$body" <<EOF2
{
  "displayName": "serverless-chat-api ($AZURE_ENV_NAME)",
  "tags": ["$AUTH_REGISTRATION"],
  "signInAudience": "AzureADMyOrg",
  "isFallbackPublicClient": true,
  "api": {
    "requestedAccessTokenVersion": 2,
    "oauth2PermissionScopes": [
      {
        "id": "$scope",
        "value": "access_as_user",
        "type": "User",
        "isEnabled": true,
        "adminConsentDisplayName": "Chat as the signed-in person",
        "adminConsentDescription": "Lets a client call the chat API as the signed-in person.",
        "userConsentDisplayName": "Chat as you",
        "userConsentDescription": "Lets a client call the chat API as you."
      }
    ]
  },
  "appRoles": [
    {
      "id": "$user_role",
      "value": "Chat.User",
      "displayName": "Chat user",
      "description": "May chat.",
      "allowedMemberTypes": ["User", "Application"],
      "isEnabled": true
    },
    {
      "id": "$admin_role",
      "value": "Chat.Admin",
      "displayName": "Chat administrator",
      "description": "May chat, and see what everyone's use costs.",
      "allowedMemberTypes": ["User", "Application"],
      "isEnabled": true
    }
  ]
}
EOF2
  registered=$(graph --method post --url "$graph_url/applications" --body "@$body" --query "[id, appId]")
fi
# shellcheck disable=SC2086 # two ids of each registration
set -- $registered
if [ $# != 2 ]; then
  refuse "More than one registration has the tag $AUTH_REGISTRATION. Delete all but one: az ad app delete --id ..., or set AUTH_CLIENT_ID."
fi
id=$1
client_id=$2

# These name the registration's own ids, so they can't be part of the first request.
cat >"$body" <<EOF2
{
  "identifierUris": ["api://$client_id"],
  "api": {
    "preAuthorizedApplications": [{"appId": "$azure_cli", "delegatedPermissionIds": ["$scope"]}]
  }
}
EOF2
graph --method patch --url "$graph_url/applications/$id" --body "@$body"

principal=$(graph --method get --query "value[].[id]" \
  --url "$graph_url/servicePrincipals?\$filter=appId eq '$client_id'&\$select=id,appId")
if [ -z "$principal" ]; then
  printf '{"appId": "%s"}\n' "$client_id" >"$body"
  graph --method post --url "$graph_url/servicePrincipals" --body "@$body" --query "[id]" >/dev/null
fi

azd env set AUTH_TENANT_ID "$tenant" --environment "$AZURE_ENV_NAME"
azd env set AUTH_CLIENT_ID "$client_id" --environment "$AZURE_ENV_NAME"
cat <<EOF2

People of the tenant $tenant sign in to the app with the registration
"serverless-chat-api ($AZURE_ENV_NAME)", AUTH_CLIENT_ID $client_id. azd down leaves it.
EOF2
