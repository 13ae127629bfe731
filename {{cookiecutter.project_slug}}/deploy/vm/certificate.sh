#!/usr/bin/env bash
# Replace the self-signed certificate with one from Let's Encrypt, once the domain name points to this server.
set -euo pipefail
# shellcheck source=deploy/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

LIVE=/etc/letsencrypt/live/$DOMAIN

# Whether a plain HTTP request to the domain name reaches this server.
points_here() {
    local dir=$WEBROOT/.well-known/acme-challenge name answer
    name=probe-$(openssl rand -hex 16)
    install -d -m 755 "$dir"
    printf '%s' "$name" >"$dir/$name"
    answer=$(curl --fail --silent --max-time 10 "http://$DOMAIN/.well-known/acme-challenge/$name" || true)
    rm "$dir/$name"
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
    if ! points_here; then
        log "$DOMAIN does not point to this server yet, or its port 80 is not reachable: keeping the self-signed certificate"
        exit 0
    fi
    issue "${1:-}"
fi
link "$LIVE" "$CONFIG/tls"
systemctl reload nginx
log "$DOMAIN has a certificate from Let's Encrypt"
