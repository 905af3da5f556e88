#!/bin/sh
# Where people sign in: adds the pages' addresses, which are known once the app is provisioned, to the redirect addresses
# of the registration that sign-in.sh made. Others stay. A failure is reported and stops nothing.
set -eu

if [ "${AUTH:-}" != entra ]; then exit 0; fi
chat=$AZURE_FUNCTION_APP_URL/chat
usage=$AZURE_FUNCTION_APP_URL/usage

report() {
  cat <<EOF2

The registration $AUTH_CLIENT_ID $1. Otherwise the pages can't sign anyone in (AADSTS50011).
Its redirect URIs of the platform Single-page application have to include:
  $chat
  $usage
EOF2
  exit 0
}

if [ -z "${AUTH_REGISTRATION:-}" ]; then report "is not changed from here: check its addresses"; fi
errors=$(mktemp)
body=$(mktemp)
trap 'rm -f "$errors" "$body"' EXIT
failed() {
  cat "$errors" >&2
  report "could not be changed; the error is above. Run azd provision again, or ask an owner"
}

graph=$(az cloud show --query endpoints.microsoftGraphResourceId --output tsv 2>"$errors") || failed
graph=${graph%/}/v1.0
registered=$(az rest --method get --url "$graph/applications?\$filter=tags/any(tag:tag eq '$AUTH_REGISTRATION')" --output tsv \
  --query "value[?appId=='$AUTH_CLIENT_ID'].[[id], spa.redirectUris][][]" 2>"$errors") || failed
# shellcheck disable=SC2086 # its id, then its redirect addresses
set -- $registered
if [ $# = 0 ]; then report "was not made here, or is deleted: check its addresses"; fi
id=$1
shift
missing=
for address in "$chat" "$usage"; do
  case " $* " in *" $address "*) ;; *) missing="$missing $address" ;; esac
done
if [ -z "$missing" ]; then exit 0; fi
# shellcheck disable=SC2086 # addresses have no spaces
addresses=$(printf '"%s", ' "$@" $missing)
printf '{"spa": {"redirectUris": [%s]}}\n' "${addresses%, }" >"$body"
az rest --method patch --url "$graph/applications/$id" --body "@$body" --output none 2>"$errors" || failed
echo "People can sign in at $chat and $usage."
