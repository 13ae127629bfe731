#!/usr/bin/env bash
# Replace the self-signed certificate by one of Let's Encrypt, as soon as the domain name leads to this server.
set -euo pipefail
# shellcheck source=deploy/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

LIVE=/etc/letsencrypt/live/$DOMAIN

# Whether a request for the domain name, over plain HTTP, comes out here.
leads_here() {
    local folder=$WEBROOT/.well-known/acme-challenge name answer
    name=probe-$(openssl rand -hex 16)
    install -d -m 755 "$folder"
    printf '%s' "$name" >"$folder/$name"
    answer=$(curl --fail --silent --max-time 10 "http://$DOMAIN/.well-known/acme-challenge/$name" || true)
    rm "$folder/$name"
    [[ $answer == "$name" ]]
}

issue() {
    local contact=(--register-unsafely-without-email)
    [[ -z ${1:-} ]] || contact=(--email "$1")
    certbot certonly --non-interactive --quiet --agree-tos "${contact[@]}" \
        --webroot --webroot-path "$WEBROOT" --cert-name "$DOMAIN" --domain "$DOMAIN"
}

require_root
if [[ ! -e $LIVE/fullchain.pem ]]; then
    if ! leads_here; then
        say "$DOMAIN does not lead to this server yet: the certificate stays self-signed"
        exit 0
    fi
    issue "${1:-}"
fi
link "$LIVE" "$CONFIG/tls"
systemctl reload nginx
say "$DOMAIN has a certificate of a certificate authority"
