"""An operator's commands, logs, metrics and backups."""

import base64
import json
import re
import shlex

import pytest

from tests.support.servers import PASSWORD, PROJECT, Server, create, is_served
from tests.support.serving import wait_until
from tests.support.stored_files import READ_FILE, STORE_FILE


def test_manage_commands_run_on_the_server(server: Server) -> None:
    manage = f"{server.slug}-manage"

    output = server.machine.run(
        f"echo {shlex.quote(PASSWORD)} | {manage} users create-admin root@example.com --password-stdin"
    )

    assert "root@example.com is an administrator" in output
    assert "production" in server.machine.run(f"{manage} check")
    server.machine.run(f"{manage} users deactivate root@example.com")


def test_manage_command_passes_its_arguments_on_unchanged(server: Server) -> None:
    revision = "$HOME.${HOME}$$%h'\"`id`"

    # In base64, because systemd-run, which may run this command, expands `$` and `%`.
    encoded = base64.b64encode(revision.encode()).decode()
    output = server.machine.fails(f'{server.slug}-manage db upgrade "$(base64 -d <<< {encoded})"')

    assert f"Upgrading to {revision} ..." in output


def test_restore_recovers_a_lost_database_and_lost_files(server: Server, token: str) -> None:
    created = create(server, token, "Worth keeping")
    file_id = server.run_python(STORE_FILE, "as worthy")
    server.machine.run(f"systemctl start {server.slug}-backup.service")
    backup = server.machine.run(f"ls -t /var/backups/{server.slug}/{server.slug}-* | head -n 1")
    files = server.machine.run(f"ls -d /var/backups/{server.slug}/files/* | tail -n 1")
    server.machine.run(f"systemctl stop {server.slug}.target")
    destroy_database(server)
    server.machine.run(f"rm -r /var/lib/{server.slug}/files")

    server.machine.run(f"{server.slug}-manage db restore {backup} --yes")
    server.machine.run(f"{server.slug}-manage files restore {files}")

    server.machine.run(f"systemctl start {server.slug}.target")
    server.site.wait()
    assert created.json["title"] in server.titles(token)
    assert create(server, token, "After the loss").status == 201
    assert server.run_python(READ_FILE, file_id) == "as worthy"
    assert server.machine.run(f"stat -c '%a %U' {backup}") == f"600 {server.owner}"
    assert server.machine.run(f"systemctl is-active {server.slug}-backup.timer") == "active"


def destroy_database(server: Server) -> None:
    if server.project.answers["database"] == "postgresql":
        drop = f'DROP DATABASE "{server.slug}"; CREATE DATABASE "{server.slug}" OWNER "{server.owner}"'
        statements = " ".join(f"-c {shlex.quote(statement)}" for statement in drop.split("; "))
        server.machine.run(f"cd /tmp; runuser -u postgres -- psql -q {statements}")
    else:
        server.machine.run(f"rm /var/lib/{server.slug}/app.sqlite3*")


def test_metrics_add_up_the_counts_of_all_workers(server: Server) -> None:
    before = server.count_requests()

    statuses = [server.site.request("DELETE", "/api/v1/users/me").status for _ in range(10)]

    assert statuses == [401] * 10
    wait_until(lambda: server.count_requests() == before + 10, 30, lambda: "all are counted")
    assert [server.count_requests() - before for _ in range(10)] == [10] * 10


def test_every_log_line_of_the_service_is_json(server: Server) -> None:
    # Only the service's lines since its last start, without systemd's lines about the unit.
    run = f"_SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID {server.instance})"

    lines = server.machine.run(f"journalctl {run} -o cat").splitlines()

    assert [json.loads(line) for line in lines]


@pytest.mark.servers("postgresql")
def test_backups_and_logs_do_not_fill_the_disk(server: Server) -> None:
    backups, log = f"/var/backups/{server.slug}", "/var/log/nginx/access.log"
    server.machine.run(f"touch {backups}/{server.slug}-202001{{10..29}}T030000Z.dump")

    server.machine.run(f"systemctl start {server.slug}-backup.service")
    server.machine.run("logrotate --force /etc/logrotate.d/nginx")

    wait_until(
        lambda: server.site.answers() and '"path":"/health"' in server.machine.run(f"cat {log}"),
        60,
        lambda: "nginx writes to the new file",
    )
    kept = server.machine.run(f"cd {backups}; ls -d {server.slug}-*").split()
    journal = server.machine.run("journalctl -u systemd-journald -o cat | grep 'System Journal' | tail -n 1")
    assert len(kept) == 14
    assert max(kept) > f"{server.slug}-2026"
    assert server.machine.run(f"stat -c %a {log}.1 {log}").split() == ["640", "640"]
    assert "max 500.0M" in journal
    server.machine.run("systemctl is-active logrotate.timer")


@pytest.mark.servers("postgresql")
def test_full_log_disk_stops_no_request(server: Server, token: str) -> None:
    fill = "cat /dev/zero > {0}/fill 2>/dev/null || true"
    folders = ["/var/log/nginx", "/var/log/journal"]
    for folder in folders:
        server.machine.run(f"mount -t tmpfs -o size=1M none {folder}; {fill.format(folder)}; df {folder}")
    server.machine.run("nginx -s reopen; systemctl restart systemd-journald")

    try:
        assert [create(server, token, "The disk is full").status for _ in range(20)] == [201] * 20
        assert "100%" in server.machine.run("df /var/log/nginx")
    finally:
        server.machine.run(f"umount -l {' '.join(folders)}; nginx -s reopen; systemctl restart systemd-journald")
    server.site.wait()


@pytest.mark.servers("postgresql")
def test_every_command_of_the_page_about_servers_works(server: Server, token: str) -> None:
    document = server.project.read("docs/server.md")
    commands = "".join(re.findall(r"(?ms)^```sh\n(.*?)^```", document)).splitlines()
    commands += re.findall(r"`(systemctl [^`]+)`", document)
    server.machine.run(f"systemctl start {server.slug}-backup.service")
    backup = server.machine.run(f"cd /var/backups/{server.slug}; ls -d {server.slug}-* | tail -n 1")
    files = server.machine.run(f"ls /var/backups/{server.slug}/files | tail -n 1")
    server.machine.run("fail2ban-client set service banip 203.0.113.7")
    # The commands run on the server itself. A timeout ends `journalctl --follow`; `systemctl status` fails if a unit is
    # inactive.
    meant = {" root@server.example.com": "", "/FILE ": f"/{backup} ", "/FOLDER": f"/{files}"}

    for line in commands:
        command = line
        for written, here in meant.items():
            command = command.replace(written, here)
        fine = {"journalctl": 124, "systemctl status": 3}
        ends = next((code for words, code in fine.items() if command.startswith(words)), 0)
        shell = f"timeout 540 bash -c {shlex.quote(command)}" if ends != 124 else f"timeout 3 {command}"
        server.machine.run(f"cd {PROJECT}; {shell} || [[ $? == {ends} ]]")

    assert len(commands) > 10
    server.site.wait()
    assert is_served(server, token)
