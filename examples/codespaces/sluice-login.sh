#!/usr/bin/env bash
# GitHub gives Codespaces no OIDC token (Actions alone have them), so the person logs in: the device flow of your identity provider
# (RFC 8628), once a day. What is kept is a refresh token of that provider, and no AWS key.
#
#   sluice-login               log in
#   sluice-login credentials   for credential_process
set -euo pipefail
issuer=${SLUICE_ISSUER:-https://login.example.com/realms/dev}
client=${SLUICE_CLIENT:-codespaces}
kept=${XDG_STATE_HOME:-$HOME/.local/state}/sluice-login
umask 077
mkdir -p "$(dirname "$kept")"

endpoint() { curl -fsS "$issuer/.well-known/openid-configuration" | jq -er ".$1"; }

login() {
  started=$(curl -fsS "$(endpoint device_authorization_endpoint)" -d client_id="$client" -d scope="openid offline_access")
  echo "open $(jq -r '.verification_uri_complete // .verification_uri' <<<"$started") and confirm $(jq -r .user_code <<<"$started")" >&2
  interval=$(jq -r '.interval // 5' <<<"$started")
  while sleep "$interval"; do
    answer=$(curl -sS "$(endpoint token_endpoint)" -d client_id="$client" -d grant_type=urn:ietf:params:oauth:grant-type:device_code \
      -d device_code="$(jq -r .device_code <<<"$started")")
    case $(jq -r '.error // ""' <<<"$answer") in
      "") jq -er .refresh_token <<<"$answer" > "$kept"; return ;;
      authorization_pending) ;;
      slow_down) interval=$((interval + 5)) ;; # as RFC 8628 asks
      *) jq -r '.error_description // .error' <<<"$answer" >&2; exit 1 ;;
    esac
  done
}

credentials() {
  [ -s "$kept" ] || { echo "log in first: sluice-login" >&2; exit 1; }
  answer=$(curl -fsS "$(endpoint token_endpoint)" -d client_id="$client" -d grant_type=refresh_token -d refresh_token="$(cat "$kept")")
  jq -r '.refresh_token // empty' <<<"$answer" > "$kept.new"
  if [ -s "$kept.new" ]; then mv "$kept.new" "$kept"; else rm "$kept.new"; fi
  jq -e --arg until "$(date -u -d '+4 minutes' +%Y-%m-%dT%H:%M:%SZ)" \
    '{Version: 1, AccessKeyId: "sluice", SecretAccessKey: "sluice", SessionToken: .id_token, Expiration: $until}' <<<"$answer"
}

"${1:-login}"
