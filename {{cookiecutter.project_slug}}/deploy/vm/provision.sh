#!/usr/bin/env bash
# Prepare a server for this project, on the server as root or over SSH. Idempotent: a second run changes nothing.
set -euo pipefail
# shellcheck source=deploy/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=deploy/vm/changes.sh
. "$(dirname "${BASH_SOURCE[0]}")/changes.sh"

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# System services that this project needs. Debian does not restart them after a crash, or gives up after several in a row.
RESTARTED=(nginx fail2ban)
#% if cookiecutter.database == "postgresql"
RESTARTED+=(postgresql@)
# The caller's PG* variables may point to another server.
unset "${!PG@}"
#% endif
PACKAGES=(
    ca-certificates certbot curl fail2ban iproute2 logrotate nginx openssl python3-systemd python3-venv ufw
    unattended-upgrades
#% if cookiecutter.database == "postgresql"
    postgresql
#% endif
)
EMAIL=''
SWAP=''

usage() {
    cat <<END
Usage: provision.sh [HOST] [OPTION]...

  HOST             prepare this server over SSH: a name, user@name, or an alias from ~/.ssh/config (default: this machine)
  --dry-run        print the changes without making them
  --email ADDRESS  contact address for Let's Encrypt
  --swap SIZE      also create a swap file, such as 2G
END
}

main() {
    local host='' options=()
    while [[ $# -gt 0 ]]; do
        case $1 in
            -h | --help) usage; exit ;;
            --dry-run) DRY_RUN=yes; options+=("$1") ;;
            --email) EMAIL=${2:?--email needs an address}; options+=("$1" "$2"); shift ;;
            --swap) SWAP=${2:?--swap needs a size, such as 2G}; options+=("$1" "$2"); shift ;;
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
    trap report_failed_change EXIT
    check_system
    install_packages
    create_accounts
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
    [[ -z $SWAP ]] || create_swap
    get_certificate
    report
}

check_system() {
    # shellcheck source=/dev/null
    . /etc/os-release
    case $ID-${VERSION_ID%%.*} in
        debian-1[2-9] | debian-[2-9]? | ubuntu-2[4-9] | ubuntu-[3-9]?) log "Server: $PRETTY_NAME, $(hostname)" ;;
        *) die "unsupported system (${PRETTY_NAME:-unknown}): use Debian 12 or Ubuntu 24.04, or a newer release" ;;
    esac
    [[ ! -d /etc/nginx/service || -e /etc/nginx/conf.d/$SLUG.conf ]] ||
        die "this server already runs another service of this template: use a separate server for each service"
    [[ -z $SWAP ]] || ! systemd-detect-virt --quiet --container ||
        die "--swap does not work in a container, which uses the swap of its host: leave the option out"
    local unit
    for unit in "$SLUG@.service" "$SLUG.target" "$SLUG.service"; do
        [[ ! -e /usr/lib/systemd/system/$unit ]] || die "the system already has a unit $unit: choose another project_slug"
    done
    local account
    for account in "$ACCOUNT" "$BUILDER"; do
        [[ $(getent passwd "$account" | cut -d: -f6) =~ ^($STATE|$CACHE)?$ ]] ||
            die "the system already has an account $account: choose another project_slug"
    done
#% if cookiecutter.database == "postgresql"
    [[ $(getent passwd "$OWNER" | cut -d: -f6) =~ ^/?$ ]] ||
        die "the system already has an account $OWNER: choose another project_slug"
#% endif
}

install_packages() {
    local package missing=()
    # Any NTP client will do.
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

# Retry while the lists are locked: a new server updates them itself when it boots, and DPkg::Lock::Timeout does not apply to
# this lock.
update_lists() {
    local output deadline=$((SECONDS + 300))
    # Error-Mode=any: without it, apt-get succeeds even if a list could not be fetched.
    until output=$(apt-get -q -o APT::Update::Error-Mode=any update 2>&1); do
        if [[ $output != */lists/lock* ]] || ((SECONDS >= deadline)); then
            log "$output" >&2
            return 1
        fi
        sleep 1
    done
}

create_accounts() {
    getent passwd "$ACCOUNT" >/dev/null ||
        change "create the account $ACCOUNT, without a shell" \
            useradd --system --user-group --home-dir "$STATE" --no-create-home --shell /usr/sbin/nologin "$ACCOUNT"
#% if cookiecutter.database == "postgresql"
    getent passwd "$OWNER" >/dev/null ||
        change "create the account $OWNER, without a shell" \
            useradd --system --gid "$ACCOUNT" --home-dir / --no-create-home --shell /usr/sbin/nologin "$OWNER"
#% endif
    getent passwd "$BUILDER" >/dev/null ||
        change "create the account $BUILDER, which builds releases" \
            useradd --system --user-group --home-dir "$CACHE" --no-create-home --shell /usr/sbin/nologin "$BUILDER"
    ensure_dir 755 root root "$CONFIG"
    ensure_dir 750 root "$ACCOUNT" "$BASE"
    ensure_dir 750 root "$ACCOUNT" "$BASE/releases"
    ensure_dir 700 "$BUILDER" "$BUILDER" "$CACHE"
    ensure_dir 700 "$ACCOUNT" "$ACCOUNT" "$STATE"
#% if cookiecutter.database == "postgresql"
    # The service's account must not read or change the backups of the database.
    ensure_dir 710 "$OWNER" "$ACCOUNT" "$BACKUPS"
    ensure_dir 700 "$ACCOUNT" "$ACCOUNT" "$BACKUPS/files"
#% else
    ensure_dir 700 "$ACCOUNT" "$ACCOUNT" "$BACKUPS"
#% endif
    ensure_dir 755 root root "$WEBROOT"
}

# The files are written only once: afterwards the operator maintains them.
write_configuration() {
#% if cookiecutter.database == "postgresql"
    [[ -e $CONFIG/owner ]] || install_file 600 root "$CONFIG/owner" <"$HERE/owner"
#% endif
    [[ ! -e $CONFIG/env ]] || return 0
    local text
    text=$(<"$HERE/env")
    # Substituted by the shell: any user can read the arguments of a program such as sed.
    text=${text/@SECRET_KEY@/$(openssl rand -hex 32)}
    text=${text/@DATABASE_PASSWORD@/$(openssl rand -hex 24)}
    install_file 640 "$ACCOUNT" "$CONFIG/env" < <(printf '%s\n' "$text")
}

#% if cookiecutter.database == "postgresql"
# setting NAME: print a setting as systemd reads it, because systemd and the shell have different rules for quotes,
# escapes and comments.
setting() {
    systemd-run --quiet --wait --collect --pipe --service-type=exec -p EnvironmentFile="-$CONFIG/env" \
        -- /usr/bin/printenv "$1" </dev/null || true
}

# number SETTING DEFAULT
number() {
    local value
    value=$(setting "$1" | tr -dc 0-9 || true)
    echo "${value:-$2}"
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

# Does nothing if the configuration points to a database on another server.
prepare_postgresql() {
    [[ -z $(setting DATABASE_URL) && $(setting DATABASE_HOST) =~ ^(127\.0\.0\.1|localhost|)$ ]] || return 0
    DATABASE_PORT=$(number DATABASE_PORT 5432)
    enable_units postgresql.service
    can_log_in || change "create the PostgreSQL role $SLUG, with the password from $CONFIG/env" create_role
    owns_database || change "create the database $SLUG, owned by the role $OWNER" create_database
    install_file 644 root "$(cluster_dir)/conf.d/$SLUG.conf" postgresql < <(echo "max_connections = $(count_connections)")
    run_handler postgresql "restart PostgreSQL" systemctl restart postgresql
}

# Print the configuration directory of the cluster on DATABASE_PORT, or a placeholder before the first run creates the cluster.
cluster_dir() {
    pg_lsclusters --no-header 2>/dev/null |
        awk -v port="$DATABASE_PORT" '$3 == port { print "/etc/postgresql/" $1 "/" $2; found = 1 }
            END { if (!found) print "/etc/postgresql/VERSION/main" }'
}

# Print max_connections. Two instances run during a deployment, and each of their workers has its own pool. 20 more are for
# backups and operators; PostgreSQL's default of 100 is the minimum.
count_connections() {
    local workers count
    workers=$(number WEB_CONCURRENCY "$(nproc)")
    ((workers > 1)) || workers=2
    count=$((2 * workers * $(number DATABASE_POOL_SIZE 10) + 20))
    echo $((count > 100 ? count : 100))
}

# The password is passed in the environment, because any user can read a program's arguments.
create_role() {
    local password
    password=$(setting DATABASE_PASSWORD)
    [[ -n $password ]] || die "DATABASE_PASSWORD in $CONFIG/env must be set: PostgreSQL rejects connections without a password"
    PASSWORD=$password psql_as_postgres --set name="$SLUG" <<'END'
\getenv password PASSWORD
SELECT format('CREATE ROLE %I', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" LOGIN PASSWORD :'password';
END
}

# Use UTF-8, whatever the server's locale is. The owner role has no password, because it connects by peer authentication.
create_database() {
    psql_as_postgres --set name="$SLUG" --set owner="$OWNER" <<'END'
SELECT format('CREATE ROLE %I LOGIN', :'owner') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'owner') \gexec
CREATE DATABASE :"name" OWNER :"owner" TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C.UTF-8';
END
}

#% endif
install_uv() {
    [[ -x $BASE/uv/bin/uv ]] || change "install uv into $BASE/uv" install_uv_package
}

install_uv_package() {
    python3 -m venv "$BASE/uv"
    "$BASE/uv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: 'uv>=0.13,<0.14'
}

install_scripts_and_units() {
    local script unit name
    for script in lib.sh health.sh certificate.sh; do
        install_file "$([[ -x $HERE/$script ]] && echo 755 || echo 644)" root "$LIBRARY/$script" <"$HERE/$script"
    done
    install_file 755 root "/usr/local/sbin/$SLUG-manage" <"$HERE/manage.sh"
    for unit in "$HERE"/units/*; do
        name=$(basename "$unit")
        install_file 644 root "/etc/systemd/system/$SLUG${name#service}" systemd <"$unit"
    done
    for name in "${RESTARTED[@]}"; do
        install_file 644 root "/etc/systemd/system/$name.service.d/$SLUG.conf" systemd <"$HERE/restart.conf"
    done
    run_handler systemd "reload systemd's units" systemctl daemon-reload
    enable_units "$SLUG.target" "$SLUG-health.timer" "$SLUG-backup.timer" "$SLUG-certificate.timer"
}

prepare_nginx() {
    local file name
    [[ -e $CONFIG/tls/fullchain.pem ]] || change "create a self-signed certificate for $DOMAIN" create_certificate
    for file in "$HERE"/../nginx/*.conf; do
        name=$(basename "$file")
        # deny.conf is maintained by the operator.
        [[ $name != deny.conf || ! -e /etc/nginx/service/deny.conf ]] || continue
        install_file 644 root "/etc/nginx/service/$name" nginx <"$file"
    done
    install_file 644 root "/etc/nginx/conf.d/$SLUG.conf" nginx < <(print_site)
    # A proxied request needs two connections, so Debian's 768 are too few. The limit of open files must be higher than the
    # number of connections.
    install_file 644 root "/etc/nginx/modules-enabled/90-$SLUG.conf" nginx <<<"worker_rlimit_nofile 16384;"
    if grep -qs 'worker_connections 768;' /etc/nginx/nginx.conf; then
        notify nginx
        change "allow 8192 connections per nginx worker" \
            sed -i 's/worker_connections 768;/worker_connections 8192;/' /etc/nginx/nginx.conf
    fi
    if [[ -e /etc/nginx/sites-enabled/default ]]; then
        notify nginx
        change "remove nginx's default site" rm /etc/nginx/sites-enabled/default
    fi
    # certbot runs this hook after each renewal.
    install_file 755 root /etc/letsencrypt/renewal-hooks/deploy/reload-nginx <<<$'#!/bin/sh\nsystemctl reload nginx'
    run_handler nginx "reload nginx" reload_nginx
    enable_units nginx.service
}

# Without IPv6 in the kernel, nginx does not start if the site listens on an IPv6 address.
print_site() {
    if [[ -d /proc/sys/net/ipv6 ]]; then cat "$HERE/nginx.conf"; else sed '/^ *listen \[::\]:/d' "$HERE/nginx.conf"; fi
}

create_certificate() {
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
    install_file 644 root "/etc/systemd/journald.conf.d/$SLUG.conf" journal <"$HERE/journald.conf"
    run_handler journal "restart journald" systemctl restart systemd-journald
    install_file 644 root /etc/apt/apt.conf.d/20auto-upgrades < <(
        printf 'APT::Periodic::%s "1";\n' Update-Package-Lists Unattended-Upgrade
    )
    if systemctl cat systemd-timesyncd.service >/dev/null 2>&1; then enable_units systemd-timesyncd.service; fi
    enable_units unattended-upgrades.service certbot.timer
}

prepare_fail2ban() {
    install_file 644 root "/etc/fail2ban/filter.d/service.conf" fail2ban <"$HERE/fail2ban/filter.conf"
    install_file 644 root "/etc/fail2ban/filter.d/service-limits.conf" fail2ban <"$HERE/fail2ban/limits.conf"
    install_file 644 root "/etc/fail2ban/jail.d/service.local" fail2ban <"$HERE/fail2ban/jail.conf"
    run_handler fail2ban "restart fail2ban" systemctl restart fail2ban
    enable_units fail2ban.service
}

# Allow SSH before the firewall is enabled, so that the operator is not locked out.
prepare_firewall() {
    local port
    for port in $(ssh_ports) 80 443; do
        ufw show added 2>/dev/null | grep -qx "ufw allow $port/tcp" ||
            change "allow $port/tcp through the firewall" quietly ufw allow "$port/tcp"
    done
    ufw status 2>/dev/null | grep -q '^Status: active' ||
        change "enable the firewall, which blocks all other ports" quietly ufw --force enable
    # `ufw enable` leaves the unit inactive until the next boot.
    systemctl is-active --quiet ufw.service || change "enable ufw.service" systemctl --quiet enable --now ufw.service
}

# Print the ports that sshd or its socket unit listens on, the ports in its configuration, and the port of this session.
ssh_ports() {
    # `sshd -T` needs this directory, which does not exist when sshd is started by its socket.
    mkdir -p /run/sshd
    {
        ss -Hltnp | awk '/"sshd"/ { print $4 }' | sed 's/.*://'
        systemctl is-active --quiet ssh.socket &&
            systemctl show --property Listen --value ssh.socket | sed -n 's/.*:\([0-9]*\) (Stream)$/\1/p'
        sshd -T | sed -n 's/^port //p' || echo 22
        echo "${SSH_CONNECTION##* }"
    } 2>/dev/null | grep . | sort -nu
}

create_swap() {
    [[ -e /swapfile ]] || change "create a swap file of $SWAP" write_swap_file
    grep -qs '^/swapfile ' /proc/swaps || change "activate /swapfile" swapon /swapfile
    grep -qs '^/swapfile ' /etc/fstab || change "activate /swapfile at each boot" add_swap_to_fstab
}

# Atomic: the file gets its name when it is complete.
write_swap_file() {
    rm -f /swapfile.new
    (umask 077 && fallocate -l "$SWAP" /swapfile.new)
    quietly mkswap /swapfile.new
    mv /swapfile.new /swapfile
}

add_swap_to_fstab() { echo '/swapfile none swap sw 0 0' >>/etc/fstab; }

get_certificate() {
    [[ $(readlink "$CONFIG/tls") != "/etc/letsencrypt/live/$DOMAIN" && -z $DRY_RUN ]] || return 0
    "$LIBRARY/certificate.sh" "$EMAIL" || log "There is no certificate from Let's Encrypt yet (see above): $SLUG-certificate.timer retries every hour"
}

report() {
    if [[ $CHANGES -eq 0 ]]; then
        log "Nothing changed: the server is up to date"
    elif [[ -n $DRY_RUN ]]; then
        log "$CHANGES changes would be made; nothing was changed"
    else
        log "$CHANGES changes made"
    fi
    [[ -e $BASE/current ]] || log "Next: run deploy.sh"
}

main "$@"
