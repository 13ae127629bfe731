#!/usr/bin/env bash
# Prepare a fresh server for this project; a second run changes nothing. On the server, as root, or over SSH.
set -euo pipefail
# shellcheck source=deploy/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Services that this one needs: after a crash, or after several in a row, Debian restarts none of them.
RESTARTED=(nginx fail2ban)
#% if cookiecutter.database == "postgresql"
RESTARTED+=(postgresql@)
# The caller's PG* variables may name another server.
unset "${!PG@}"
#% endif
PACKAGES=(
    ca-certificates certbot curl fail2ban iproute2 logrotate nginx openssl python3-systemd python3-venv ufw
    unattended-upgrades
#% if cookiecutter.database == "postgresql"
    postgresql
#% endif
)
CHANGES=0
DRY_RUN=''
DOING=''
EMAIL=''
SWAP=''
WAITING=' '

usage() {
    cat <<END
Usage: provision.sh [HOST] [OPTION]...

  HOST             a server to do it on, over SSH: name, user@name, or an alias of ~/.ssh/config
  --dry-run        tell what would be changed, and change nothing
  --email ADDRESS  where Let's Encrypt may reach the owner of the certificate
  --swap SIZE      also make a swap file, such as 2G
END
}

main() {
    local host='' options=()
    while [[ $# -gt 0 ]]; do
        case $1 in
            -h | --help) usage; exit ;;
            --dry-run) DRY_RUN=yes; options+=("$1") ;;
            --email) EMAIL=${2:?--email ADDRESS}; options+=("$1" "$2"); shift ;;
            --swap) SWAP=${2:?--swap SIZE}; options+=("$1" "$2"); shift ;;
            -*) usage >&2; exit 2 ;;
            *) [[ -z $host ]] || { usage >&2; exit 2; }; host=$1 ;;
        esac
        shift
    done
    if [[ -n $host ]]; then
        run_on_host "$host" provision.sh ${options[@]+"${options[@]}"}
        return
    fi
    provision
}

provision() {
    require_root
    trap tell_where_it_stopped EXIT
    check_system
    install_packages
    make_account
    write_configuration
#% if cookiecutter.database == "postgresql"
    prepare_postgresql
#% endif
    install_uv
    install_scripts_and_units
    prepare_nginx
    prepare_logs_and_updates
    prepare_fail2ban
    prepare_firewall
    [[ -z $SWAP ]] || make_swap
    get_certificate
    report
}

# --- how a change is made: said, counted, and done unless this is a dry run

change() {
    say "- $1"
    CHANGES=$((CHANGES + 1))
    DOING=$1
    [[ -n $DRY_RUN ]] || "${@:2}"
    DOING=''
}

tell_where_it_stopped() {
    local result=$?
    [[ $result -eq 0 || -z $DOING ]] ||
        say "provision.sh: could not ${DOING%%,*}. When that is mended run it again: what is done stays done" >&2
}

# What a program says is told only when it fails.
quietly() {
    local output
    output=$("$@" 2>&1) || { say "$output" >&2; return 1; }
}

# put MODE GROUP PATH [WAITING]: make PATH, a file, what standard input says. WAITING names what has to be told of it. In
# no pipeline: there the change would not be counted.
put() {
    local mode=$1 group=$2 path=$3 waiting=${4:-} new
    new=$(mktemp)
    cat >"$new"
    if ! cmp --silent "$new" "$path" || [[ $(stat -c '%a %U %G' "$path") != "$mode root $group" ]]; then
        [[ -z $waiting ]] || let_wait "$waiting"
        change "write $path" install -D -m "$mode" -o root -g "$group" "$new" "$path"
    fi
    rm "$new"
}

# Written down, so that a run that was interrupted is made good by the next.
let_wait() {
    WAITING+="$1 "
    [[ -n $DRY_RUN ]] || touch "$CONFIG/.$1"
}

# tell WAITING DESCRIPTION COMMAND...: once, when a file of it was changed.
tell() {
    [[ $WAITING == *" $1 "* || -e $CONFIG/.$1 ]] || return 0
    change "$2" "${@:3}"
    [[ -n $DRY_RUN ]] || rm -f "$CONFIG/.$1"
}

# folder MODE OWNER GROUP PATH
folder() {
    [[ $(stat -c '%a %U %G' "$4" 2>/dev/null || true) == "$1 $2 $3" ]] ||
        change "make the folder $4" install -d -m "$1" -o "$2" -g "$3" "$4"
}

# enable UNIT...: now, and at each start of the machine.
enable() {
    local unit
    for unit in "$@"; do
        systemctl is-enabled --quiet "$unit" 2>/dev/null ||
            change "enable $unit" systemctl --quiet enable --now "$unit"
    done
}

# --- the steps

check_system() {
    # shellcheck source=/dev/null
    . /etc/os-release
    case $ID-${VERSION_ID%%.*} in
        debian-1[2-9] | debian-[2-9]? | ubuntu-2[4-9] | ubuntu-[3-9]?) say "Server: $PRETTY_NAME, $(hostname)" ;;
        *) die "needs Debian 12 or Ubuntu 24.04 or newer, and this is ${PRETTY_NAME:-something else}" ;;
    esac
    [[ ! -d /etc/nginx/service || -e /etc/nginx/conf.d/$SLUG.conf ]] ||
        die "another service made from this template is on this server: each needs a server of its own"
    [[ -z $SWAP ]] || ! systemd-detect-virt --quiet --container ||
        die "--swap: this is a container, which swaps where its host does"
    local unit
    for unit in "$SLUG@.service" "$SLUG.target" "$SLUG.service"; do
        [[ ! -e /usr/lib/systemd/system/$unit ]] || die "the system has a $unit of its own: choose another project_slug"
    done
    local account
    for account in "$ACCOUNT" "$BUILDER"; do
        [[ $(getent passwd "$account" | cut -d: -f6) =~ ^($STATE|$CACHE)?$ ]] ||
            die "the system has an account $account of its own: choose another project_slug"
    done
#% if cookiecutter.database == "postgresql"
    [[ $(getent passwd "$OWNER" | cut -d: -f6) =~ ^/?$ ]] ||
        die "the system has an account $OWNER of its own: choose another project_slug"
#% endif
}

install_packages() {
    local package missing=()
    # Another program that sets the clock is as good.
    is_installed chrony || is_installed ntpsec || PACKAGES+=(systemd-timesyncd)
    for package in "${PACKAGES[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    [[ -z ${missing[*]} ]] || change "install ${missing[*]}" apt_install "${missing[@]}"
}

is_installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null || true) == installed ]]; }

apt_install() {
    update_lists
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a \
        quietly apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
}

# A fresh server does so by itself as it comes up, and for the lock of the lists apt does not wait.
update_lists() {
    local output deadline=$((SECONDS + 300))
    # By itself it is content with what it could not fetch.
    until output=$(apt-get -q -o APT::Update::Error-Mode=any update 2>&1); do
        if [[ $output != */lists/lock* ]] || ((SECONDS >= deadline)); then
            say "$output" >&2
            return 1
        fi
        sleep 1
    done
}

make_account() {
    getent passwd "$ACCOUNT" >/dev/null ||
        change "make the account $ACCOUNT, without a shell" \
            useradd --system --user-group --home-dir "$STATE" --no-create-home --shell /usr/sbin/nologin "$ACCOUNT"
#% if cookiecutter.database == "postgresql"
    getent passwd "$OWNER" >/dev/null ||
        change "make the account $OWNER, without a shell" \
            useradd --system --gid "$ACCOUNT" --home-dir / --no-create-home --shell /usr/sbin/nologin "$OWNER"
#% endif
    getent passwd "$BUILDER" >/dev/null ||
        change "make the account $BUILDER, which builds releases" \
            useradd --system --user-group --home-dir "$CACHE" --no-create-home --shell /usr/sbin/nologin "$BUILDER"
    folder 755 root root "$CONFIG"
    folder 750 root "$ACCOUNT" "$BASE"
    folder 750 root "$ACCOUNT" "$BASE/releases"
    folder 700 "$BUILDER" "$BUILDER" "$CACHE"
    folder 700 "$ACCOUNT" "$ACCOUNT" "$STATE"
#% if cookiecutter.database == "postgresql"
    # The service's account reads and changes no backup of the database.
    folder 710 "$OWNER" "$ACCOUNT" "$BACKUPS"
    folder 700 "$ACCOUNT" "$ACCOUNT" "$BACKUPS/files"
#% else
    folder 700 "$ACCOUNT" "$ACCOUNT" "$BACKUPS"
#% endif
    folder 755 root root "$WEBROOT"
}

# Made once: afterwards it belongs to the operator.
write_configuration() {
#% if cookiecutter.database == "postgresql"
    [[ -e $CONFIG/owner ]] || put 600 root "$CONFIG/owner" <"$HERE/owner"
#% endif
    [[ ! -e $CONFIG/env ]] || return 0
    local text
    text=$(<"$HERE/env")
    # By the shell itself: every user can read a program's arguments.
    text=${text/@SECRET_KEY@/$(openssl rand -hex 32)}
    text=${text/@DATABASE_PASSWORD@/$(openssl rand -hex 24)}
    put 640 "$ACCOUNT" "$CONFIG/env" < <(say "$text")
}
#% if cookiecutter.database == "postgresql"

# systemd reads the file: its rules for quotes, escapes and comments are its own.
setting() {
    systemd-run --quiet --wait --collect --pipe --service-type=exec -p EnvironmentFile="-$CONFIG/env" \
        -- /usr/bin/printenv "$1" </dev/null || true
}

# number SETTING DEFAULT
number() {
    local value
    value=$(setting "$1" | tr -dc 0-9 || true)
    say "${value:-$2}"
}

psql_as_postgres() {
    (cd / && runuser -u postgres -- psql --port "$DATABASE_PORT" --quiet --no-psqlrc --set ON_ERROR_STOP=1 "$@")
}

owns_database() {
    [[ $(psql_as_postgres -At --set name="$SLUG" \
        <<<"SELECT rolname FROM pg_database JOIN pg_roles ON pg_roles.oid = datdba WHERE datname = :'name'" \
        2>/dev/null) == "$OWNER" ]]
}

can_log_in() {
    PGPASSWORD=$(setting DATABASE_PASSWORD) psql --host 127.0.0.1 --port "$DATABASE_PORT" --username "$SLUG" \
        --dbname postgres --no-password --no-psqlrc --quiet -c '' 2>/dev/null
}

# Only where the configuration names this server's own PostgreSQL.
prepare_postgresql() {
    [[ -z $(setting DATABASE_URL) && $(setting DATABASE_HOST) =~ ^(127\.0\.0\.1|localhost|)$ ]] || return 0
    DATABASE_PORT=$(number DATABASE_PORT 5432)
    enable postgresql.service
    can_log_in || change "make the role $SLUG of PostgreSQL, with the password of $CONFIG/env" make_role
    owns_database || change "make the database $SLUG, of the role $OWNER" make_database
    put 644 root "$(cluster_folder)/conf.d/$SLUG.conf" postgresql < <(say "max_connections = $(count_connections)")
    tell postgresql "restart PostgreSQL" systemctl restart postgresql
}

# Of the server that the configuration names, by its port; a dry run may come before there is one.
cluster_folder() {
    pg_lsclusters --no-header 2>/dev/null |
        awk -v port="$DATABASE_PORT" '$3 == port { print "/etc/postgresql/" $1 "/" $2; found = 1 }
            END { if (!found) print "/etc/postgresql/VERSION/main" }'
}

# While a deployment goes on two instances run, each with a pool of connections for every worker. Some more for backups
# and people; not less than PostgreSQL's own default.
count_connections() {
    local workers count
    workers=$(number WEB_CONCURRENCY "$(nproc)")
    ((workers > 1)) || workers=2
    count=$((2 * workers * $(number DATABASE_POOL_SIZE 10) + 20))
    say $((count > 100 ? count : 100))
}

# psql quotes the values. The password is in its environment: every user can read a program's arguments.
make_role() {
    local password
    password=$(setting DATABASE_PASSWORD)
    [[ -n $password ]] || die "DATABASE_PASSWORD in $CONFIG/env must be set: PostgreSQL lets nobody in without one"
    PASSWORD=$password psql_as_postgres --set name="$SLUG" <<'END'
\getenv password PASSWORD
SELECT format('CREATE ROLE %I', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" LOGIN PASSWORD :'password';
END
}

# Create it in UTF-8, independent of the server's locale. The owner has no password: PostgreSQL asks the system who connects.
make_database() {
    psql_as_postgres --set name="$SLUG" --set owner="$OWNER" <<'END'
SELECT format('CREATE ROLE %I LOGIN', :'owner') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'owner') \gexec
CREATE DATABASE :"name" OWNER :"owner" TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C.UTF-8';
END
}
#% endif

install_uv() {
    [[ -x $BASE/uv/bin/uv ]] || change "install uv into $BASE/uv" make_uv
}

make_uv() {
    python3 -m venv "$BASE/uv"
    "$BASE/uv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: 'uv>=0.13,<0.14'
}

install_scripts_and_units() {
    local script unit name
    for script in lib.sh health.sh certificate.sh; do
        put "$([[ -x $HERE/$script ]] && echo 755 || echo 644)" root "$LIBRARY/$script" <"$HERE/$script"
    done
    put 755 root "/usr/local/sbin/$SLUG-manage" <"$HERE/manage.sh"
    for unit in "$HERE"/units/*; do
        name=$(basename "$unit")
        put 644 root "/etc/systemd/system/$SLUG${name#service}" systemd <"$unit"
    done
    for name in "${RESTARTED[@]}"; do
        put 644 root "/etc/systemd/system/$name.service.d/$SLUG.conf" systemd <"$HERE/restart.conf"
    done
    tell systemd "let systemd read its units" systemctl daemon-reload
    enable "$SLUG.target" "$SLUG-health.timer" "$SLUG-backup.timer" "$SLUG-certificate.timer"
}

prepare_nginx() {
    local file name
    [[ -e $CONFIG/tls/fullchain.pem ]] || change "make a self-signed certificate for $DOMAIN" make_certificate
    for file in "$HERE"/../nginx/*.conf; do
        name=$(basename "$file")
        # Whom the operator denies is the operator's.
        [[ $name != deny.conf || ! -e /etc/nginx/service/deny.conf ]] || continue
        put 644 root "/etc/nginx/service/$name" nginx <"$file"
    done
    put 644 root "/etc/nginx/conf.d/$SLUG.conf" nginx < <(list_site)
    # Debian's 768 are few: a request that is handed on needs two. The files that a worker may open follow.
    put 644 root "/etc/nginx/modules-enabled/90-$SLUG.conf" nginx <<<"worker_rlimit_nofile 16384;"
    if grep -qs 'worker_connections 768;' /etc/nginx/nginx.conf; then
        let_wait nginx
        change "let each worker of nginx have 8192 connections" \
            sed -i 's/worker_connections 768;/worker_connections 8192;/' /etc/nginx/nginx.conf
    fi
    if [[ -e /etc/nginx/sites-enabled/default ]]; then
        let_wait nginx
        change "remove nginx's sample site" rm /etc/nginx/sites-enabled/default
    fi
    # certbot runs it after each renewal.
    put 755 root /etc/letsencrypt/renewal-hooks/deploy/reload-nginx <<<$'#!/bin/sh\nsystemctl reload nginx'
    tell nginx "reload nginx" reload_nginx
    enable nginx.service
}

# Where the kernel has no IPv6, nginx does not start with an address of it.
list_site() {
    if [[ -d /proc/sys/net/ipv6 ]]; then cat "$HERE/nginx.conf"; else sed '/^ *listen \[::\]:/d' "$HERE/nginx.conf"; fi
}

make_certificate() {
    install -d -m 700 "$CONFIG/self-signed"
    quietly openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$SLUG" \
        -addext "subjectAltName=DNS:$DOMAIN" \
        -keyout "$CONFIG/self-signed/privkey.pem" -out "$CONFIG/self-signed/fullchain.pem"
    link "$CONFIG/self-signed" "$CONFIG/tls"
}

reload_nginx() {
    nginx -t -q
    systemctl reload-or-restart nginx
}

prepare_logs_and_updates() {
    put 644 root "/etc/systemd/journald.conf.d/$SLUG.conf" journal <"$HERE/journald.conf"
    tell journal "restart the journal" systemctl restart systemd-journald
    put 644 root /etc/apt/apt.conf.d/20auto-upgrades < <(
        printf 'APT::Periodic::%s "1";\n' Update-Package-Lists Unattended-Upgrade
    )
    if systemctl cat systemd-timesyncd.service >/dev/null 2>&1; then enable systemd-timesyncd.service; fi
    enable unattended-upgrades.service certbot.timer
}

prepare_fail2ban() {
    put 644 root "/etc/fail2ban/filter.d/service.conf" fail2ban <"$HERE/fail2ban/filter.conf"
    put 644 root "/etc/fail2ban/filter.d/service-limits.conf" fail2ban <"$HERE/fail2ban/limits.conf"
    put 644 root "/etc/fail2ban/jail.d/service.local" fail2ban <"$HERE/fail2ban/jail.conf"
    tell fail2ban "restart fail2ban" systemctl restart fail2ban
    enable fail2ban.service
}

# SSH first: whoever runs this is not locked out.
prepare_firewall() {
    local port
    for port in $(ssh_ports) 80 443; do
        ufw show added 2>/dev/null | grep -qx "ufw allow $port/tcp" ||
            change "allow $port/tcp through the firewall" quietly ufw allow "$port/tcp"
    done
    ufw status 2>/dev/null | grep -q '^Status: active' ||
        change "let the firewall refuse everything else" quietly ufw --force enable
    # Loading the rules leaves the unit inactive until the next start of the machine.
    systemctl is-active --quiet ufw.service || change "enable ufw.service" systemctl --quiet enable --now ufw.service
}

# Where sshd listens, or systemd for it; where it will after its next start; and where whoever runs this came in.
ssh_ports() {
    # Without it sshd, when systemd starts it for each connection, does not even print its settings.
    mkdir -p /run/sshd
    {
        ss -Hltnp | awk '/"sshd"/ { print $4 }' | sed 's/.*://'
        systemctl is-active --quiet ssh.socket &&
            systemctl show --property Listen --value ssh.socket | sed -n 's/.*:\([0-9]*\) (Stream)$/\1/p'
        sshd -T | sed -n 's/^port //p' || say 22
        say "${SSH_CONNECTION##* }"
    } 2>/dev/null | grep . | sort -nu
}

make_swap() {
    [[ -e /swapfile ]] || change "make a swap file of $SWAP" write_swap_file
    grep -qs '^/swapfile ' /proc/swaps || change "swap to /swapfile" swapon /swapfile
    grep -qs '^/swapfile ' /etc/fstab || change "swap to it after each start of the machine" add_swap_to_fstab
}

# Under another name until it is whole.
write_swap_file() {
    rm -f /swapfile.new
    (umask 077 && fallocate -l "$SWAP" /swapfile.new)
    quietly mkswap /swapfile.new
    mv /swapfile.new /swapfile
}

add_swap_to_fstab() { say '/swapfile none swap sw 0 0' >>/etc/fstab; }

get_certificate() {
    [[ $(readlink "$CONFIG/tls") != "/etc/letsencrypt/live/$DOMAIN" && -z $DRY_RUN ]] || return 0
    "$LIBRARY/certificate.sh" "$EMAIL" || say "No certificate yet (see above): $SLUG-certificate.timer goes on trying"
}

report() {
    if [[ $CHANGES -eq 0 ]]; then
        say "Nothing changed: the server is as it should be"
    elif [[ -n $DRY_RUN ]]; then
        say "$CHANGES changes would be made; nothing was changed"
    else
        say "$CHANGES changes made"
    fi
    [[ -e $BASE/current ]] || say "Next: deploy.sh"
}

main "$@"
