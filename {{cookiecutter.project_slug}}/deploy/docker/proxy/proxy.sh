#!/bin/sh
# Run nginx in front of all instances of the application.
#   proxy.sh start          the container's command: write the files that nginx includes, keep them up to date, run nginx
#   proxy.sh drain [ID...]  take these containers out of use, and return when their last request has been answered;
#                           without an ID, put all containers back into use
#   proxy.sh health         the container's health check
set -eu

NETWORK_NAME=app
PORT=8000
INTERVAL_SECONDS=1
DRAIN_SECONDS=90
GIVEN=/etc/nginx/tls
cd /run/nginx

log() {
    echo "proxy: $*" >&2
}

addresses_of() {
    getent ahostsv4 "$1" | cut -d ' ' -f 1 | sort -u
}

is_pair() {
    [ -r "$1/fullchain.pem" ] && [ -r "$1/privkey.pem" ] &&
        [ "$(openssl x509 -noout -pubkey -in "$1/fullchain.pem" 2> /dev/null)" = \
            "$(openssl pkey -pubout -in "$1/privkey.pem" 2> /dev/null)" ]
}

# Install the certificate of secrets/tls, or create a self-signed one if there is no certificate yet. Succeeds if the
# certificate has changed.
take_certificate() {
    mkdir -p -m 0700 tls
    if is_pair "$GIVEN" && ! cmp -s "$GIVEN/fullchain.pem" tls/fullchain.pem; then
        cp "$GIVEN/privkey.pem" "$GIVEN/fullchain.pem" tls/
        log "using the certificate in secrets/tls"
    elif [ ! -e tls/fullchain.pem ]; then
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$DOMAIN" \
            -addext "subjectAltName=DNS:$DOMAIN" -keyout tls/privkey.pem -out tls/fullchain.pem 2> /dev/null
        log "there is no certificate in secrets/tls: using a self-signed one"
    else
        return 1
    fi
}

is_ready() {
    curl --silent --fail --max-time 2 --output /dev/null "http://$1:$PORT/health/ready"
}

# Print the servers to use: those that are ready, and those that were used before and are neither gone nor drained. A server
# that is no longer ready stays in use, because its error responses are more helpful than those of nginx.
list_servers() {
    for address in $(addresses_of "$NETWORK_NAME"); do
        server="server $address:$PORT max_fails=1 fail_timeout=5s;"
        if ! grep -qx "$address" drained && { grep -qF "$server" instances.conf || is_ready "$address"; }; then
            echo "$server"
        fi
    done
}

# Write the servers to instances.conf. Succeeds if they have changed. If no server was found, the file stays as it is.
write_instances() {
    servers=$(list_servers)
    [ -n "$servers" ] || return 1
    printf 'upstream app {\ninclude service/upstream.conf;\n%s\n}\n' "$servers" > instances.new
    ! cmp -s instances.new instances.conf || return 1
    mv instances.new instances.conf
    log "serving from $(echo "$servers" | cut -d ' ' -f 2 | tr '\n' ' ')"
}

watch() {
    while sleep "$INTERVAL_SECONDS"; do
        touch heartbeat
        changed=false
        if write_instances; then changed=true; fi
        if take_certificate; then changed=true; fi
        if $changed; then kill -HUP 1; fi
    done
}

start() {
    HTTPS_SUFFIX=
    [ "$HTTPS_PORT" = 443 ] || HTTPS_SUFFIX=":$HTTPS_PORT"
    export HTTPS_SUFFIX
    # shellcheck disable=SC2016  # envsubst expands them
    envsubst '$DOMAIN $HTTPS_SUFFIX' < /etc/nginx/proxy/site.conf.template > site.conf
    : > drained
    printf 'upstream app {\ninclude service/upstream.conf;\nserver 127.0.0.1:%s down;\n}\n' "$PORT" > instances.conf
    write_instances || log "no instance of the application is ready yet: answering 503 until one is ready"
    take_certificate
    touch heartbeat
    # If the loop ends, stop nginx, so that the container restarts.
    { watch || true; kill -QUIT 1; } &
    exec nginx -g 'daemon off;'
}

list_workers() {
    # grep fails if a process ends meanwhile.
    grep -ls '^nginx: worker' /proc/[0-9]*/cmdline || true
}

is_in_use() {
    grep -qF "server $1:$PORT " instances.conf
}

drain() {
    deadline=$(($(date +%s) + DRAIN_SECONDS))
    # After a reload, the old workers finish the requests that they have begun.
    old_workers=$(list_workers)
    for id in "$@"; do addresses_of "$id"; done > drained.new
    in_use=false
    while read -r address; do
        if is_in_use "$address"; then in_use=true; fi
    done < drained.new
    mv drained.new drained
    # If no drained address is in use, there is nothing to wait for: nginx is not reloaded, and its workers stay.
    $in_use || return 0
    while read -r address; do
        while is_in_use "$address"; do pause "$address is still in use"; done
    done < drained
    for worker in $old_workers; do
        while grep -qs '^nginx: worker' "$worker"; do pause "nginx still answers requests that it sent to the old instances"; done
    done
}

pause() {
    [ "$(date +%s)" -lt "$deadline" ] || { log "gave up after $DRAIN_SECONDS s: $1"; exit 1; }
    sleep 0.2
}

health() {
    [ -n "$(find heartbeat -mmin -1)" ] && curl --silent --fail --max-time 2 http://127.0.0.1:8081/
}

command=$1
shift
"$command" "$@"
