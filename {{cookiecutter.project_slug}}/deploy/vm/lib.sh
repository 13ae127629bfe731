# shellcheck shell=bash disable=SC2029,SC2034
# Names, paths and functions shared by the scripts in this directory. Sourced, not run.
umask 022
export LC_ALL=C.UTF-8

SLUG="{{ cookiecutter.project_slug }}"
DOMAIN="{{ cookiecutter.domain_name }}"
# systemd warns about account names of more than 31 characters.
ACCOUNT="{{ cookiecutter.project_slug[:31] }}"
#% if cookiecutter.database == "postgresql"
# The account and PostgreSQL role that own the database. The service runs as another account, so that it can change neither
# the schema nor the triggers that protect the audit log.
OWNER="{{ cookiecutter.project_slug[:25] }}-owner"
#% endif
# Builds releases: a separate account, so that the code of dependencies reaches neither the secrets nor other releases.
BUILDER="{{ cookiecutter.project_slug[:25] }}-build"
BASE=/opt/$SLUG
CONFIG=/etc/$SLUG
STATE=/var/lib/$SLUG
BACKUPS=/var/backups/$SLUG
RUNTIME=/run/$SLUG
CACHE=/var/cache/$SLUG
LIBRARY=/usr/local/lib/$SLUG
WEBROOT=/var/www/$SLUG
# nginx connects to the socket that this link points to. A deployment replaces the link instead of reloading nginx, because a
# reload would close the connections of clients.
ACTIVE=$CONFIG/active.sock
# This directory is locked during a deployment. Only root and the service's account can open it, and therefore lock it.
LOCK=$BASE

# The contents of a release. Other files, such as .env and the tests, are not copied to the server.
RELEASE_FILES=(
    alembic.ini app deploy docs migrations pyproject.toml start.sh
#% if cookiecutter.process_manager == "gunicorn"
    gunicorn_conf.py
#% endif
)

log() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

require_root() { [[ $EUID -eq 0 ]] || die "must be run as root: sudo $0"; }

# run_on_host HOST SCRIPT [ARGUMENT...]: copy this project to HOST and run a script of this directory there as root.
run_on_host() {
    local host=$1 script=$2 root dir command terminal=()
    shift 2
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
    log "On $host:"
    dir=$(ssh "$host" mktemp -d)
    pack "$root" | ssh "$host" "tar -xzf - -C $dir"
    command="cd $dir && \$([ \$(id -u) = 0 ] || echo sudo) deploy/vm/$script"
    [[ -z $* ]] || command+=$(printf ' %q' "$@")
    [[ ! -t 0 ]] || terminal=(-t)
    ssh ${terminal[@]+"${terminal[@]}"} "$host" "{ $command; }; result=\$?; rm -rf $dir; exit \$result"
}

# pack DIRECTORY: write the files of a release to standard output, as an archive.
pack() {
    local files=("${RELEASE_FILES[@]}")
    [[ ! -e $1/uv.lock ]] || files+=(uv.lock)
    COPYFILE_DISABLE=1 tar -C "$1" --exclude=__pycache__ -czf - "${files[@]}"
}

# manage RELEASE COMMAND...: run the service's command line as its account, with its configuration. systemd-run expands
# variables in arguments, so a dollar sign is doubled.
manage() {
    local release=$1 mode=--pipe account=$ACCOUNT more=()
    shift
#% if cookiecutter.database == "postgresql"
    if [[ ${1:-} == db ]]; then account=$OWNER more=(-p "EnvironmentFile=$CONFIG/owner"); fi
#% endif
    [[ ! -t 0 || ! -t 1 ]] || mode=--pty
    systemd-run --quiet --wait --collect "$mode" --service-type=exec --working-directory="$release" \
        -p User="$account" -p Group="$ACCOUNT" -p UMask=0077 -p NoNewPrivileges=yes \
        -p EnvironmentFile="$CONFIG/env" "${more[@]}" -E PYTHONDONTWRITEBYTECODE=1 \
        -- "$release/.venv/bin/python" -m app "${@//\$/\$\$}"
}

# link TARGET PATH: create or replace a symbolic link atomically.
link() {
    ln -sfn "$1" "$2.new" &&
        mv -T "$2.new" "$2"
}

# Print the instance that nginx connects to, a or b; nothing before the first deployment.
active_instance() { basename "$(readlink "$ACTIVE" || true)" .sock; }

# probe INSTANCE CHECK: request /health/live or /health/ready.
probe() { curl --fail --silent --show-error --max-time 5 --unix-socket "$RUNTIME/$1.sock" "http://localhost/health/$2"; }
