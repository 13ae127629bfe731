"""PostgreSQL: its roles, passwords, certificate and connections."""

import shlex

import pytest

from tests.support.servers import PROJECT, Server

pytestmark = pytest.mark.servers("postgresql")


def test_max_connections_is_enough_for_two_instances(server: Server) -> None:
    pool = 10
    query = "SELECT setting, sourcefile FROM pg_settings WHERE name = 'max_connections'"

    granted, file = server.machine.run(f'cd /; runuser -u postgres -- psql -At -c "{query}"').split("|")

    assert file.endswith(f"/conf.d/{server.slug}.conf")
    assert int(granted) > 2 * pool * len(server.wait_for_workers()[1])


def test_service_owns_neither_its_tables_nor_their_backups(server: Server) -> None:
    connect = f"cd /; PGPASSWORD=$DATABASE_PASSWORD psql -X -w -d {server.slug}"
    as_service = f"{connect} -h 127.0.0.1 -U {server.slug} -c"
    refused = {
        f"{connect} -U {server.owner}": "Peer authentication failed",
        f"{connect} -h 127.0.0.1 -U {server.owner}": "authentication failed",
        f"{as_service} 'SET ROLE \"{server.owner}\"'": "permission denied",
        f"{as_service} 'TRUNCATE audit_events'": "permission denied",
        f"{as_service} 'ALTER TABLE audit_events DISABLE TRIGGER ALL'": "must be owner",
        f"ls /var/backups/{server.slug}": "Permission denied",
        f"cat /etc/{server.slug}/owner": "Permission denied",
    }
    owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"

    server.machine.run(f"systemctl start {server.slug}-backup.service")
    for command, reason in refused.items():
        run = f"runuser -u {server.slug[:31]} -- bash -c {shlex.quote(command)} 2>&1"
        assert reason in server.machine.fails(f"set -a; . /etc/{server.slug}/env; {run}"), command
    purged = server.machine.run(f"{server.slug}-manage purge")

    assert server.machine.run(f'cd /; runuser -u postgres -- psql -At -c "{owners}" {server.slug}') == server.owner
    assert "Done: " in purged


def test_database_certificate_is_verified_as_the_manual_says(server: Server) -> None:
    configuration, folder = f"/etc/{server.slug}/env", f"/etc/{server.slug}"
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    server.machine.run(
        f"""
        cp -p {configuration} /root/env
        echo '127.0.0.1 database.vm.test' >> /etc/hosts
        mkdir /root/tls && cd /root/tls
        openssl req -x509 {key} -subj /CN=right -keyout right.key -out right.pem
        openssl req -x509 {key} -subj /CN=wrong -keyout wrong.key -out wrong.pem
        openssl req {key} -subj /CN=database.vm.test -keyout server.key -out server.csr
        openssl x509 -req -in server.csr -CA right.pem -CAkey right.key -CAcreateserial -out server.pem \\
            -extfile <(echo subjectAltName=DNS:database.vm.test)
        install -m 644 right.pem wrong.pem {folder}
        cluster=$(pg_lsclusters --no-header | awk '{{ print "/etc/postgresql/" $1 "/" $2 }}')
        install -o postgres -m 600 server.key server.pem "$cluster"
        printf "ssl_cert_file = '%s/server.pem'\\nssl_key_file = '%s/server.key'\\n" "$cluster" "$cluster" \\
            > "$cluster/conf.d/tls.conf"
        systemctl restart postgresql
        """
    )

    def connect(host: str, query: str) -> str:
        password = "$(sed -n 's/^DATABASE_PASSWORD=//p' /root/env)"
        url = f"postgresql://{server.slug}:{password}@{host}/{server.slug}?{query}"
        server.machine.run(f'cp -p /root/env {configuration}; echo "DATABASE_URL={url}" >> {configuration}')
        return server.machine.run(f"{server.slug}-manage db wait --timeout 0 2>&1 || true")

    verified = f"sslmode=verify-full&sslrootcert={folder}"
    try:
        right = connect("database.vm.test", f"{verified}/right.pem")
        of_another = connect("database.vm.test", f"{verified}/wrong.pem")
        of_another_name = connect("127.0.0.1", f"{verified}/right.pem")
        without = connect("database.vm.test", "sslmode=verify-full")
        server.machine.run("echo 'ssl = off' >> /etc/postgresql/*/*/conf.d/tls.conf; systemctl restart postgresql")
        unencrypted = connect("database.vm.test", f"{verified}/right.pem")
        by_default = connect("database.vm.test", "")
    finally:
        server.machine.run(
            f"""
            cp -p /root/env {configuration}
            sed -i /database.vm.test/d /etc/hosts
            rm -r /root/tls {folder}/right.pem {folder}/wrong.pem /etc/postgresql/*/*/conf.d/tls.conf
            systemctl restart postgresql
            """
        )

    assert "The database answers." in right
    assert "certificate verify failed" in of_another
    assert "does not match host name" in of_another_name
    assert "root.crt" in without
    assert "server does not support SSL" in unencrypted
    assert "The database answers." in by_default
    server.site.wait()


def test_database_is_in_utf_8(server: Server) -> None:
    shown = server.machine.run(f"cd /; runuser -u postgres -- psql -At -c 'SHOW server_encoding' {server.slug}")

    assert shown == "UTF8"


@pytest.mark.parametrize(
    "written",
    [
        "it's",
        '"it\'s \\"quoted\\" and \\\\ \\`id\\` $HOME"  ',
        "'single \"quotes\"'",
        "back\\\\slash # and no comment",
        "x' SUPERUSER; --",
        "first\nDATABASE_PASSWORD=last:'name' %h ÄÖ",
    ],
)
def test_role_gets_the_password_that_the_service_reads(server: Server, written: str) -> None:
    configuration, manage = f"/etc/{server.slug}/env", f"{server.slug}-manage"
    server.machine.run(f"cp -p {configuration} /root/env")
    try:
        server.setting(f"DATABASE_PASSWORD={written}")
        provisioned = server.machine.run(f"{PROJECT}/deploy/vm/provision.sh")
        checked = server.machine.run(f"{manage} db wait --timeout 0")
        again = server.machine.run(f"{PROJECT}/deploy/vm/provision.sh")
    finally:
        server.machine.run(f"cp -p /root/env {configuration}; {PROJECT}/deploy/vm/provision.sh")

    superusers = server.machine.run(
        "cd /; runuser -u postgres -- psql -At -c 'SELECT rolname FROM pg_roles WHERE rolsuper'"
    )
    assert f"create the PostgreSQL role {server.slug}" in provisioned
    assert "The database answers." in checked
    assert "Nothing changed" in again
    assert superusers == "postgres"
    server.site.wait()


def test_missing_database_password_is_reported(server: Server) -> None:
    configuration = f"/etc/{server.slug}/env"
    server.machine.run(f"cp -p {configuration} /root/env; echo DATABASE_PASSWORD= >> {configuration}")
    try:
        output = server.machine.fails(f"{PROJECT}/deploy/vm/provision.sh")
    finally:
        server.machine.run(f"cp -p /root/env {configuration}")

    assert f"DATABASE_PASSWORD in {configuration} must be set" in output
