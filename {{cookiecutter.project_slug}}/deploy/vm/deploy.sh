#!/usr/bin/env bash
# Deploy this project, or go back, without failing a request. On the server, as root, or from anywhere over SSH.
set -euo pipefail
# shellcheck source=deploy/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

KEPT_RELEASES=5
READY_SECONDS=90
# The longest that an instance may take for its last requests: as long as systemd grants it.
DRAIN_SECONDS=40

usage() {
    cat <<END
Usage: deploy.sh [deploy|rollback|restart|status] [HOST] [OPTION]

  deploy      build a release of this folder, migrate, and switch to it when it is ready (the default)
  rollback    switch to the release that served before the current one was deployed
  restart     start the current release anew, with the configuration as it is now
  status      tell what is running

  HOST        a server to do it on, over SSH: name, user@name, or an alias of ~/.ssh/config
  --downgrade with rollback: also take the database back to the older release's schema (after a backup)
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
        # health.sh holds it for as long as it asks, which may take this long.
        flock --wait 20 9 || die "another deployment is under way"
    fi
    "run_$verb" ${options[@]+"${options[@]}"}
}

run_deploy() {
    local release
    release=$BASE/releases/$(date -u +%Y%m%d-%H%M%S)
    trap 'discard "'"$release"'"' EXIT
    build "$release"
    readlink "$BASE/current" >"$release/.previous" || true
    say "Checking the configuration"
    manage "$release" check || die "the configuration cannot work: nothing was changed (edit $CONFIG/env)"
    migrate "$release"
    switch_to "$release" || undo "$release"
    trap - EXIT
    prune
    say "Deployed: ${release##*/} serves https://$DOMAIN"
}

build() {
    say "Building ${1##*/}"
    install -d -m 755 "$1"
    pack "$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)" | tar --no-same-owner -xzf - -C "$1"
    # The service's account reads it, also when it was checked out for one's own eyes.
    chmod -R u=rwX,go=rX "$1"
    [[ -e $1/uv.lock ]] || say "  no uv.lock: taking the newest versions that pyproject.toml allows"
    # Compiled now: the service may not write into its release. Compiling runs none of the code, so root may do it.
    (
        cd "$1" &&
#% if cookiecutter.process_manager == "gunicorn"
            /usr/bin/python3 -I -m compileall -q app migrations gunicorn_conf.py &&
#% else
            /usr/bin/python3 -I -m compileall -q app migrations deploy &&
#% endif
            install -d -o "$BUILDER" -g "$BUILDER" .venv .build &&
            as_builder "$1" sh -euc "$BUILD" >.schema &&
            # No process of the builder is left. Links are not followed, and nobody else can write any more.
            chown -hR root:root .venv .build &&
            chmod -R u=rwX,go=rX .venv .build
    ) || die "the release could not be built: nothing was changed"
}

# What runs code of the release and of what it depends on. It prints the revision of the schema.
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

# as_builder FOLDER COMMAND...: run it as the account that builds, which can write only to its cache and to what it owns in
# FOLDER. Variables for indexes, proxies and certificates are passed on; $ is doubled as in `manage`.
as_builder() {
    local folder=$1 name passed=()
    shift
    for name in "${!UV_@}" "${!PIP_@}" "${!SSL_CERT_@}" {http,https,all,no}_proxy {HTTP,HTTPS,ALL,NO}_PROXY; do
        [[ -z ${!name-} ]] || passed+=("--setenv=$name")
    done
    # Errors go through a pipe: a program that has root's terminal open could type into it.
    systemd-run --quiet --wait --collect --pipe --service-type=exec --working-directory="$folder" \
        ${passed[@]+"${passed[@]}"} -E HOME="$CACHE" -E UV="$BASE/uv/bin/uv" -E UV_CACHE_DIR="$CACHE" \
        -E UV_LINK_MODE=copy -E UV_PYTHON_DOWNLOADS=never -E UV_PYTHON=/usr/bin/python3 -E PYTHONDONTWRITEBYTECODE=1 \
        -p User="$BUILDER" -p Group="$BUILDER" -p UMask=0022 -p NoNewPrivileges=yes -p CapabilityBoundingSet= \
        -p ProtectSystem=strict -p ProtectHome=yes -p PrivateTmp=yes -p PrivateDevices=yes -p ProtectProc=invisible \
        -p ProtectKernelTunables=yes -p ProtectKernelModules=yes -p ProtectControlGroups=yes -p RestrictSUIDSGID=yes \
        -p TemporaryFileSystem="/opt" -p BindPaths="$folder" -p BindReadOnlyPaths="$BASE/uv" \
        -p ReadWritePaths="$CACHE" -p IPAddressDeny="169.254.169.254 fd00:ec2::254" \
        -- "${@//\$/\$\$}" </dev/null 2> >(cat >&2)
}

migrate() {
    say "Migrating the database"
    manage "$1" db wait --timeout 30 >/dev/null || die "the database does not answer: nothing was changed"
    manage "$1" db upgrade >/dev/null || die "the migration failed: the service goes on with the release that it had"
}

# What failed before it took over leaves nothing behind.
discard() {
    [[ $(readlink "$BASE/$(active_instance)" || true) == "$1" ]] || rm -rf "$1"
}

undo() {
    local current schema
    current=$(readlink "$BASE/current" || true)
    [[ -n $current ]] || die "the first release does not become ready: see above"
    schema=$(<"$current/.schema")
    if [[ $schema != "$(<"$1/.schema")" ]]; then
        say "Taking the database back to $schema"
        manage "$1" db downgrade "$schema" >/dev/null || say "  that failed: the schema stays the new one"
    fi
    die "rolled back: ${current##*/} goes on serving, ${1##*/} does not take over (see above)"
}

run_rollback() {
    local current previous
    current=$(readlink "$BASE/current") || die "nothing is deployed"
    previous=$(<"$current/.previous")
    [[ -n $previous && -d $previous ]] || die "there is no release before ${current##*/}"
    if [[ $(<"$previous/.schema") != "$(<"$current/.schema")" ]]; then
        [[ ${1:-} == --downgrade ]] || die "${previous##*/} needs an older schema of the database. What only the newer" \
            "one holds would be lost; if that is right: deploy.sh rollback --downgrade"
        say "Backing up the database, and taking it back to $(<"$previous/.schema")"
        systemctl start "$SLUG-backup.service" ||
            die "no backup, so nothing was changed: journalctl -u '$SLUG-backup*' tells why"
        manage "$current" db downgrade "$(<"$previous/.schema")" ||
            die "the schema cannot be taken back: ${current##*/} goes on serving"
    fi
    if ! switch_to "$previous"; then
        manage "$current" db upgrade >/dev/null || say "The schema is still the older one: deploy.sh anew"
        die "${previous##*/} does not take over (see above): ${current##*/} goes on serving"
    fi
    say "Rolled back: ${previous##*/} serves https://$DOMAIN"
}

run_restart() {
    local current
    current=$(readlink "$BASE/current") || die "nothing is deployed"
    manage "$current" check || die "the configuration cannot work: nothing was changed (edit $CONFIG/env)"
    switch_to "$current" || die "the new instance does not become ready: the old one goes on serving"
    say "Restarted: ${current##*/}, with the configuration as it is now"
}

run_status() {
    local active release
    active=$(active_instance)
    [[ -n $active ]] || { say "Nothing is deployed"; return 1; }
    while read -r release; do
        if is_current "$release"; then say "* ${release##*/}"; else say "  ${release##*/}"; fi
    done < <(list_releases)
    systemctl --no-pager --lines=0 status "$SLUG@$active.service" || true
    probe "$active" ready || die "not ready: journalctl -u $SLUG@$active.service"
    say ""
}

is_current() { [[ $(readlink "$BASE/current" || true) == "$1" ]]; }

list_releases() { find "$BASE/releases" -mindepth 1 -maxdepth 1 -type d | sort; }

# Start RELEASE in the instance that is free, and let it take over once it is ready. Its callers ask whether it succeeds:
# there bash does not stop at what fails, so that each step has to.
switch_to() {
    local old new started
    old=$(active_instance)
    [[ $old == a ]] && new=b || new=a
    stop_instance "$new"
    link "$1" "$BASE/$new" || return 1
    say "Starting instance $new"
    started=$(date +%s)
    if ! systemctl start "$SLUG@$new.socket" || ! systemctl start "$SLUG@$new.service" || ! wait_ready "$new"; then
        say "Instance $new says:"
        journalctl --unit "$SLUG@$new.service" --since "@$started" --lines 25 --output cat --no-pager
        stop_instance "$new"
        return 1
    fi
    hand_over "$1" "$new" || return 1
    [[ -z $old ]] || retire "$old"
    # It may have been stopped by hand.
    systemctl start "$SLUG.target"
}

# hand_over RELEASE INSTANCE: from now on nginx asks this one.
hand_over() {
    say "Switching to instance $2"
    if publish "$1" && systemctl --quiet enable "$SLUG@$2.socket" "$SLUG@$2.service" &&
        link "$RUNTIME/$2.sock" "$ACTIVE"; then
        link "$1" "$BASE/current" || say "$BASE/current could not be changed: deploy anew"
        return 0
    fi
    say "The switch failed (see above)"
    systemctl --quiet disable "$SLUG@$2.socket" "$SLUG@$2.service"
    stop_instance "$2"
    return 1
}

# nginx serves these by itself. Those of older releases stay: pages that were served before still name them. Of what the build
# made only plain files are copied: root would follow a link that it left.
publish() {
    install -d -m 755 "$WEBROOT/static" &&
#% if cookiecutter.web_pages == "yes"
        find "$1/.build/static" -type f -links 1 -exec cp -P --target-directory="$WEBROOT/static" {} + &&
#% endif
        cp -R "$1/deploy/nginx/static/." "$WEBROOT/static/"
}

# {{ cookiecutter.process_manager }} reports that it runs before its workers have imported the service.
wait_ready() {
    local deadline=$((SECONDS + READY_SECONDS)) answer
    until answer=$(probe "$1" ready 2>&1); do
        if ((SECONDS >= deadline)); then
            say "Not ready after $READY_SECONDS s: $answer"
            return 1
        fi
        # One that systemd had to start again is no better the next time.
        [[ $(systemctl show --property NRestarts --value "$SLUG@$1.service") == 0 ]] || return 1
        sleep 0.2
    done
}

retire() {
    say "Letting instance $1 finish its requests"
    systemctl --quiet disable "$SLUG@$1.socket" "$SLUG@$1.service"
    local deadline=$((SECONDS + DRAIN_SECONDS))
    while has_connections "$1" && ((SECONDS < deadline)); do sleep 0.1; done
    stop_instance "$1"
}

# Also those that no worker has accepted yet; 01 is the listening socket itself.
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
