#!/bin/sh
# Waits until the app answers, for about 5 minutes, then prints its URL and an example request. Fails if it answers with
# an error all that time.
set -eu

url=$AZURE_FUNCTION_APP_URL
python=3.13 # as in infra/app/function.bicep

# The status of GET /api/health, which needs no key and no setting; 000 without an answer.
health() { curl -sS --connect-timeout 5 --max-time 30 -o /dev/null -w '%{http_code}' "$url/api/health" 2>/dev/null || true; }

# The Python version that the last remote build used, such as 3.11.8; nothing if the log can't be read.
built_with() {
  az functionapp log deployment show -g "$AZURE_RESOURCE_GROUP" -n "$AZURE_FUNCTION_APP_NAME" 2>/dev/null |
    sed -n 's/.*--platform-version \([0-9.]*\).*/\1/p' | tail -n 1
}

status=000 tries=0
if command -v curl >/dev/null; then
  echo "Waiting for $url/api/health"
  while status=$(health) && [ "$status" != 200 ] && [ "$tries" -lt 30 ]; do
    tries=$((tries + 1))
    sleep 10
  done
fi
case $status in
  200) ;;
  000)
    cat <<EOF

$url/api/health can't be reached from this machine, so it is not known whether the app works.
EOF
    ;;
  404)
    built=$(built_with)
    case $built in
      '' | "$python" | "$python".*) cat <<EOF ;;

The app has no functions: $url/api/health answers 404. The platform could not load it.
- Usual causes: a remote build with another Python than $python (azure-dev#8538), or no SUMMARY_SCHEDULE.
- The build's log names its Python as --platform-version:
  az functionapp log deployment show -g '$AZURE_RESOURCE_GROUP' -n $AZURE_FUNCTION_APP_NAME
- See "All routes answer 404" in docs/troubleshooting.md. Then run azd deploy again.
EOF
      *) cat <<EOF ;;

The app has no functions: $url/api/health answers 404. The remote build used Python $built instead of $python, so the
packages can't be imported (azure-dev#8538). Run azd deploy again; if that does not help, see "All routes answer 404" in
docs/troubleshooting.md.
EOF
    esac
    exit 1
    ;;
  *)
    cat <<EOF

The platform answers $status for $url/api/health. In the first minutes role assignments may not apply yet: wait some
minutes, then run azd deploy. If it stays, see "401, 403 or 503 after a deployment" in docs/troubleshooting.md.
EOF
    exit 1
    ;;
esac

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

A 401, 403 or 503 in the first minutes means that role assignments do not apply yet: wait, then run azd deploy.
EOF
