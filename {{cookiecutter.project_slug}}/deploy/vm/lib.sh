# shellcheck shell=bash disable=SC2029,SC2034
# Names, places and steps that the scripts of this folder share. Sourced, not run.
umask 022
export LC_ALL=C.UTF-8

SLUG="{{ cookiecutter.project_slug }}"
DOMAIN="{{ cookiecutter.domain_name }}"
# The longest name that an account may have without a complaint.
ACCOUNT="{{ cookiecutter.project_slug[:31] }}"
#% if cookiecutter.database == "postgresql"
# The account, and the role of PostgreSQL, that owns the database. The service runs as another one: it can neither change the
# schema nor what guards the audit log.
OWNER="{{ cookiecutter.project_slug[:25] }}-owner"
#% endif
# Builds releases: what it installs runs code of others, which can then reach neither the secrets nor other releases.
BUILDER="{{ cookiecutter.project_slug[:25] }}-build"
BASE=/opt/$SLUG
CONFIG=/etc/$SLUG
STATE=/var/lib/$SLUG
BACKUPS=/var/backups/$SLUG
RUNTIME=/run/$SLUG
CACHE=/var/cache/$SLUG
LIBRARY=/usr/local/lib/$SLUG
WEBROOT=/var/www/$SLUG
# nginx talks to whatever this link points to: a switch needs no reload, which would close the connections of clients.
ACTIVE=$CONFIG/active.sock
# Whoever can open it can hold it: root and the service's account.
LOCK=$BASE

# What a release consists of; everything else, such as .env and the tests, stays where it is.
RELEASE_FILES=(alembic.ini app deploy docs migrations pyproject.toml start.sh)
#% if cookiecutter.process_manager == "gunicorn"
RELEASE_FILES+=(gunicorn_conf.py)
#% endif

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

require_root() { [[ $EUID -eq 0 ]] || die "must be run as root (sudo $0)"; }

# run_on_host HOST SCRIPT [ARGUMENT...]: copy this project to HOST and run a script of this folder there, as root.
run_on_host() {
    local host=$1 script=$2 root folder command terminal=()
    shift 2
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
    say "On $host:"
    folder=$(ssh "$host" mktemp -d)
    pack "$root" | ssh "$host" "tar -xzf - -C $folder"
    command="cd $folder && \$([ \$(id -u) = 0 ] || echo sudo) deploy/vm/$script"
    [[ -z $* ]] || command+=$(printf ' %q' "$@")
    [[ ! -t 0 ]] || terminal=(-t)
    ssh ${terminal[@]+"${terminal[@]}"} "$host" "{ $command; }; result=\$?; rm -rf $folder; exit \$result"
}

# pack FOLDER: a release's files, as an archive on standard output.
pack() {
    local files=("${RELEASE_FILES[@]}")
    [[ ! -e $1/uv.lock ]] || files+=(uv.lock)
    COPYFILE_DISABLE=1 tar -C "$1" --exclude=__pycache__ -czf - "${files[@]}"
}

# manage RELEASE COMMAND...: the service's command line, as its account and with its configuration. systemd puts the
# values of variables into arguments, where $$ is a dollar sign.
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

# link TARGET PATH: replace a symbolic link in one step.
link() {
    ln -sfn "$1" "$2.new" &&
        mv -T "$2.new" "$2"
}

# The instance, a or b, that nginx talks to; nothing before the first deployment.
active_instance() { basename "$(readlink "$ACTIVE" || true)" .sock; }

# probe INSTANCE CHECK: ask for /health/live or /health/ready.
probe() { curl --fail --silent --show-error --max-time 5 --unix-socket "$RUNTIME/$1.sock" "http://localhost/health/$2"; }
