"""Crashes, hangs and restarts."""

import pytest

from tests.support.machines import Machine
from tests.support.servers import Server, create, is_served
from tests.support.serving import wait_until


def test_all_units_run(server: Server) -> None:
    timers = " ".join(f"{server.slug}-{job}.timer" for job in ("backup", "certificate", "health"))

    assert server.machine.run("systemctl is-system-running") == "running"
    server.machine.run(f"systemctl is-active nginx ufw fail2ban unattended-upgrades certbot.timer {timers}")
    server.machine.run(f"systemctl is-enabled systemd-timesyncd {server.slug}.target")


def kill_and_wait(machine: Machine, unit: str) -> None:
    """Kill the main process of a unit; return when systemd has started another one."""
    show = f"systemctl show -P ActiveState -P MainPID {unit}"
    before = set(machine.run(show).split())
    machine.run(f"kill -9 $(systemctl show -P MainPID {unit})")
    wait_until(
        lambda: set(machine.run(show).split()) - {*before - {"active"}, "0"} > {"active"}, 60, lambda: f"{unit} is back"
    )


def test_killed_database_proxy_and_fail2ban_are_restarted(server: Server, token: str) -> None:
    created = create(server, token, "Before the crash")
    units = server.machine.run("systemctl list-units --plain --no-legend 'postgresql@*' | cut -d ' ' -f 1").split()

    # Kill each unit six times, because systemd's default limit of restarts is five.
    for unit in [*units, "nginx.service", "fail2ban.service"] * 6:
        kill_and_wait(server.machine, unit)

    server.site.wait()
    wait_until(lambda: all(is_served(server, token) for _ in range(20)), 60, lambda: "every request succeeds")
    assert created.json["title"] in server.titles(token)
    assert server.machine.run("systemctl is-system-running") == "running"
    assert len(units) == (server.project.answers["database"] == "postgresql")


def test_everything_runs_again_after_a_reboot(server: Server, token: str) -> None:
    created = create(server, token, "Survives a reboot")
    boot = server.machine.run("cat /proc/sys/kernel/random/boot_id")

    server.machine.reboot()

    server.site.wait()
    assert server.machine.run("cat /proc/sys/kernel/random/boot_id") != boot
    assert server.machine.run("systemctl is-system-running --wait") == "running"
    assert created.json["title"] in server.titles(token)
    assert "Status: active" in server.machine.run("ufw status")
    assert len(server.machine.run("journalctl --list-boots --no-pager").splitlines()) >= 2


def test_killed_worker_is_replaced(server: Server, token: str) -> None:
    main, workers = server.wait_for_workers()
    victim = min(workers)

    server.machine.run(f"kill -9 {victim}")

    wait_until(lambda: len(server.pids()[1] - {victim}) == len(workers), 30, lambda: "a new worker")
    assert server.main_pid() == main
    assert "Under" not in server.titles(token)


def test_killed_process_manager_is_restarted(server: Server) -> None:
    main = server.main_pid()
    restarts = server.restarts

    server.machine.run(f"kill -9 {main}")

    server.site.wait(30)
    wait_until(lambda: server.restarts == restarts + 1, 30, lambda: "systemd has restarted it")
    assert server.main_pid() != main


def test_hung_worker_is_replaced(server: Server) -> None:
    _, workers = server.wait_for_workers()
    victim = min(workers)

    server.machine.run(f"kill -STOP {victim}")

    wait_until(lambda: victim not in server.pids()[1], 60, lambda: "the worker is replaced")
    wait_until(lambda: len(server.pids()[1]) == len(workers), 30, lambda: "a new worker")
    server.site.wait()


def test_service_that_was_stopped_on_purpose_stays_stopped(server: Server) -> None:
    instance = server.instance
    server.machine.run(f"systemctl stop {server.slug}.target")

    result = server.unit_properties("Result", "ExecMainStatus")
    server.machine.run(f"systemctl start {server.slug}-health.service")

    assert result == {"Result": "success", "ExecMainStatus": "0"}
    assert server.machine.run(f"systemctl is-active {instance} || true") == "inactive"
    assert server.site.request("GET", "/api/v1/users/me").status == 503
    server.machine.run(f"systemctl start {server.slug}.target")
    server.site.wait()


@pytest.mark.servers("postgresql")
def test_hung_service_is_restarted_by_the_health_timer(server: Server) -> None:
    # The first worker may answer before the unit has started, and the health check ignores a unit that is starting.
    state = f"systemctl is-active {server.instance} || true"
    wait_until(lambda: server.machine.run(state) == "active", 60, lambda: server.machine.run(state))
    main = server.main_pid()

    server.machine.run(f"systemctl kill --signal=STOP {server.instance}")

    wait_until(lambda: server.main_pid() not in {0, main}, 120, lambda: "the timer has restarted the service")
    server.site.wait()
    assert "did not answer three requests in a row" in server.machine.run(
        f"journalctl -u {server.slug}-health -o cat --since=-5min"
    )


@pytest.mark.servers("postgresql")
def test_service_reconnects_after_a_database_restart(server: Server, token: str) -> None:
    before = server.wait_for_workers()
    created = create(server, token, "Before the restart")

    server.machine.run("systemctl restart postgresql")

    # A connection pool detects a closed connection only when a request uses the connection.
    wait_until(lambda: all(is_served(server, token) for _ in range(20)), 30, lambda: "the database is found again")
    assert created.json["title"] in server.titles(token)
    assert server.pids() == before
