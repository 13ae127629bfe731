#!/usr/bin/env bash
# Deploy this project, or roll it back, without failed requests: on the server as root, or over SSH.
set -euo pipefail
# shellcheck source=deploy/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

KEPT_RELEASES=5
READY_SECONDS=90
# How long an instance may take to finish its requests; the same as TimeoutStopSec in service@.service.
DRAIN_SECONDS=40

usage() {
    cat <<END
Usage: deploy.sh [deploy|rollback|restart|status] [HOST] [OPTION]

  deploy      build a release from this project, migrate the database, and switch to the release (default)
  rollback    switch back to the release that was current before the last deployment
  restart     restart the current release with the present configuration
  status      show the releases and the state of the service

  HOST        act on this server over SSH: a name, user@name, or an alias from ~/.ssh/config (default: this machine)
  --downgrade with rollback: also downgrade the database to the older release's schema, after a backup
END
}

main() {
    local verb=deploy host='' options=()
    while [[ $# -gt 0 ]]; do
        case $1 in
            deploy | rollback | restart | status) verb=$1 ;;
            -h | --help) usage; exit ;;
            --downgrade) options+=("$1") ;;
            -*) usage >&2; exit 2 ;;
            *) [[ -z $host ]] || { usage >&2; exit 2; }; host=$1 ;;
        esac
        shift
    done
    [[ -z ${options[*]-} || $verb == rollback ]] || { usage >&2; exit 2; }
    if [[ -n $host ]]; then
        run_on_host "$host" deploy.sh "$verb" ${options[@]+"${options[@]}"}
        return
    fi
    require_root
    [[ -r $CONFIG/env && -x $BASE/uv/bin/uv ]] || die "this server is not prepared: run provision.sh first"
    if [[ $verb != status ]]; then
        exec 9<"$LOCK"
        # health.sh may hold the lock for this long.
        flock --wait 20 9 || die "another deployment is under way: try again when it has ended"
    fi
    "run_$verb" ${options[@]+"${options[@]}"}
}

run_deploy() {
    local release
    release=$BASE/releases/$(date -u +%Y%m%d-%H%M%S)
    trap 'discard "'"$release"'"' EXIT
    build "$release"
    readlink "$BASE/current" >"$release/.previous" || true
    log "Checking the configuration"
    manage "$release" check || die "the configuration is not valid: nothing was changed; edit $CONFIG/env"
    migrate "$release"
    switch_to "$release" || undo "$release"
    trap - EXIT
    prune
    log "Deployed: ${release##*/} serves https://$DOMAIN"
}

build() {
    log "Building ${1##*/}"
    install -d -m 755 "$1"
    pack "$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)" | tar --no-same-owner -xzf - -C "$1"
    # The service's account must be able to read the release, whatever umask its files were created with.
    chmod -R u=rwX,go=rX "$1"
    [[ -e $1/uv.lock ]] || log "  There is no uv.lock: using the newest versions that pyproject.toml allows"
    # Compile now, because the service cannot write to its release. Root may do this, because compiling does not run the code.
    (
        cd "$1" &&
#% if cookiecutter.process_manager == "gunicorn"
            /usr/bin/python3 -I -m compileall -q app migrations gunicorn_conf.py &&
#% else
            /usr/bin/python3 -I -m compileall -q app migrations deploy &&
#% endif
            install -d -o "$BUILDER" -g "$BUILDER" .venv .build &&
            as_builder "$1" sh -euc "$BUILD" >.schema &&
            # Safe: no process of the builder is left, chown -h does not follow links, and from then on only root can write.
            chown -hR root:root .venv .build &&
            chmod -R u=rwX,go=rX .venv .build
    ) || die "the release could not be built (see above): nothing was changed"
}

# The steps that run code of the release and of its dependencies. Prints the revision of the schema.
# shellcheck disable=SC2016  # the builder's shell expands these variables
BUILD='
cp pyproject.toml .build
set -- --no-dev
if [ -e uv.lock ]; then cp uv.lock .build; set -- "$@" --locked; fi
UV_PROJECT_ENVIRONMENT=$PWD/.venv "$UV" sync --quiet --project .build --compile-bytecode "$@"
#% if cookiecutter.web_pages == "yes"
mkdir .build/static
.venv/bin/python -m app.web.assets .build/static
#% endif
.venv/bin/python -c "from app.core.db.revisions import head_revision; print(head_revision() or \"base\")"
'

# as_builder DIRECTORY COMMAND...: run a command as the build account, which can write only to its cache and to what it owns in
# DIRECTORY. Variables for indexes, proxies and certificates are passed on; $ is doubled as in `manage`.
as_builder() {
    local dir=$1 name passed=()
    shift
    for name in "${!UV_@}" "${!PIP_@}" "${!SSL_CERT_@}" {http,https,all,no}_proxy {HTTP,HTTPS,ALL,NO}_PROXY; do
        [[ -z ${!name-} ]] || passed+=("--setenv=$name")
    done
    # Standard error is a pipe: a program that has root's terminal open could inject input into the terminal.
    systemd-run --quiet --wait --collect --pipe --service-type=exec --working-directory="$dir" \
        ${passed[@]+"${passed[@]}"} -E HOME="$CACHE" -E UV="$BASE/uv/bin/uv" -E UV_CACHE_DIR="$CACHE" \
        -E UV_LINK_MODE=copy -E UV_PYTHON_DOWNLOADS=never -E UV_PYTHON=/usr/bin/python3 -E PYTHONDONTWRITEBYTECODE=1 \
        -p User="$BUILDER" -p Group="$BUILDER" -p UMask=0022 -p NoNewPrivileges=yes -p CapabilityBoundingSet= \
        -p ProtectSystem=strict -p ProtectHome=yes -p PrivateTmp=yes -p PrivateDevices=yes -p ProtectProc=invisible \
        -p ProtectKernelTunables=yes -p ProtectKernelModules=yes -p ProtectControlGroups=yes -p RestrictSUIDSGID=yes \
        -p TemporaryFileSystem="/opt" -p BindPaths="$dir" -p BindReadOnlyPaths="$BASE/uv" \
        -p ReadWritePaths="$CACHE" -p IPAddressDeny="169.254.169.254 fd00:ec2::254" \
        -- "${@//\$/\$\$}" </dev/null 2> >(cat >&2)
}

migrate() {
    log "Migrating the database"
    manage "$1" db wait --timeout 30 >/dev/null || die "the database does not answer: nothing was changed; check DATABASE_* in $CONFIG/env"
    manage "$1" db upgrade >/dev/null || die "the migration failed: the current release keeps serving (see above)"
}

# Delete a release that never served.
discard() {
    [[ $(readlink "$BASE/$(active_instance)" || true) == "$1" ]] || rm -rf "$1"
}

undo() {
    local current schema
    current=$(readlink "$BASE/current" || true)
    [[ -n $current ]] || die "the first release did not become ready (see above)"
    schema=$(<"$current/.schema")
    if [[ $schema != "$(<"$1/.schema")" ]]; then
        log "Downgrading the database to $schema"
        manage "$1" db downgrade "$schema" >/dev/null || log "  The downgrade failed: the database keeps the new schema"
    fi
    die "rolled back: ${current##*/} keeps serving, because ${1##*/} did not become ready (see above)"
}

run_rollback() {
    local current previous
    current=$(readlink "$BASE/current") || die "nothing is deployed: run deploy.sh first"
    previous=$(<"$current/.previous")
    [[ -n $previous && -d $previous ]] || die "this server has no release before ${current##*/}: deploy the wanted version of the project instead"
    if [[ $(<"$previous/.schema") != "$(<"$current/.schema")" ]]; then
        [[ ${1:-} == --downgrade ]] || die "${previous##*/} needs an older schema of the database: data that only the" \
            "newer schema can hold would be lost. To accept this loss, run deploy.sh rollback --downgrade"
        log "Backing up the database and downgrading it to $(<"$previous/.schema")"
        systemctl start "$SLUG-backup.service" ||
            die "the backup failed, so nothing was changed: see journalctl -u '$SLUG-backup*'"
        manage "$current" db downgrade "$(<"$previous/.schema")" ||
            die "the downgrade failed: ${current##*/} keeps serving"
    fi
    if ! switch_to "$previous"; then
        manage "$current" db upgrade >/dev/null || log "The database still has the older schema: run deploy.sh to upgrade it"
        die "${previous##*/} did not become ready (see above): ${current##*/} keeps serving"
    fi
    log "Rolled back: ${previous##*/} serves https://$DOMAIN"
}

run_restart() {
    local current
    current=$(readlink "$BASE/current") || die "nothing is deployed: run deploy.sh first"
    manage "$current" check || die "the configuration is not valid: nothing was changed; edit $CONFIG/env"
    switch_to "$current" || die "the new instance did not become ready (see above): the old one keeps serving"
    log "Restarted: ${current##*/}"
}

run_status() {
    local active release
    active=$(active_instance)
    [[ -n $active ]] || { log "Nothing is deployed"; return 1; }
    while read -r release; do
        if is_current "$release"; then log "* ${release##*/}"; else log "  ${release##*/}"; fi
    done < <(list_releases)
    systemctl --no-pager --lines=0 status "$SLUG@$active.service" || true
    probe "$active" ready || die "the service is not ready: see journalctl -u $SLUG@$active.service"
    echo
}

is_current() { [[ $(readlink "$BASE/current" || true) == "$1" ]]; }

list_releases() { find "$BASE/releases" -mindepth 1 -maxdepth 1 -type d | sort; }

# switch_to RELEASE: start the release in the free instance, and send requests to this instance once it is ready. Callers test
# the result, which disables `set -e` in this function: each step handles its own failure.
switch_to() {
    local old new started
    old=$(active_instance)
    [[ $old == a ]] && new=b || new=a
    stop_instance "$new"
    link "$1" "$BASE/$new" || return 1
    log "Starting instance $new"
    started=$(date +%s)
    if ! systemctl start "$SLUG@$new.socket" || ! systemctl start "$SLUG@$new.service" || ! wait_ready "$new"; then
        log "Log of instance $new:"
        journalctl --unit "$SLUG@$new.service" --since "@$started" --lines 25 --output cat --no-pager
        stop_instance "$new"
        return 1
    fi
    hand_over "$1" "$new" || return 1
    [[ -z $old ]] || retire "$old"
    # An operator may have stopped the target.
    systemctl start "$SLUG.target"
}

# hand_over RELEASE INSTANCE: make nginx send new requests to the instance, and mark the release as current.
hand_over() {
    log "Switching to instance $2"
    if publish "$1" && systemctl --quiet enable "$SLUG@$2.socket" "$SLUG@$2.service" &&
        link "$RUNTIME/$2.sock" "$ACTIVE"; then
        link "$1" "$BASE/current" || log "$BASE/current could not be updated: deploy again"
        return 0
    fi
    log "The switch failed (see above)"
    systemctl --quiet disable "$SLUG@$2.socket" "$SLUG@$2.service"
    stop_instance "$2"
    return 1
}

# Copy the static files to where nginx serves them. The files of older releases stay, because pages that browsers still show
# refer to these files. Only regular files of the build are copied, so that root follows no link that the build left.
publish() {
    install -d -m 755 "$WEBROOT/static" &&
#% if cookiecutter.web_pages == "yes"
        find "$1/.build/static" -type f -links 1 -exec cp -P --target-directory="$WEBROOT/static" {} + &&
#% endif
        cp -R "$1/deploy/nginx/static/." "$WEBROOT/static/"
}

# Poll, because {{ cookiecutter.process_manager }} notifies systemd before its workers have imported the service.
wait_ready() {
    local deadline=$((SECONDS + READY_SECONDS)) answer
    until answer=$(probe "$1" ready 2>&1); do
        if ((SECONDS >= deadline)); then
            log "Not ready after $READY_SECONDS s: $answer"
            return 1
        fi
        # Do not wait for an instance that crashes: systemd restarts it again and again.
        [[ $(systemctl show --property NRestarts --value "$SLUG@$1.service") == 0 ]] || return 1
        sleep 0.2
    done
}

retire() {
    log "Draining instance $1"
    systemctl --quiet disable "$SLUG@$1.socket" "$SLUG@$1.service"
    local deadline=$((SECONDS + DRAIN_SECONDS))
    while has_connections "$1" && ((SECONDS < deadline)); do sleep 0.1; done
    stop_instance "$1"
}

# Whether the instance has connections, also ones that no worker has accepted yet. State 01 is the listening socket itself.
has_connections() {
    awk -v path="$RUNTIME/$1.sock" '$8 == path && $6 != "01" { found = 1 } END { exit !found }' /proc/net/unix
}

stop_instance() {
    systemctl stop "$SLUG@$1.socket" "$SLUG@$1.service"
    systemctl reset-failed "$SLUG@$1.socket" "$SLUG@$1.service" 2>/dev/null || true
}

prune() {
    local release previous
    previous=$(<"$BASE/current/.previous")
    list_releases | sort -r | tail -n "+$((KEPT_RELEASES + 1))" | while read -r release; do
        is_current "$release" || [[ $release == "$previous" ]] || rm -rf "$release"
    done
    as_builder "$(readlink "$BASE/current")/.build" "$BASE/uv/bin/uv" cache prune --quiet >/dev/null || true
}

main "$@"
