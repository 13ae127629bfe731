"""`deploy.sh`: deployments, restarts and reloads, under load and over SSH."""

import re
import shlex

import pytest

from tests.support.machines import Load
from tests.support.servers import Server
from tests.support.serving import wait_until


def test_deployment_and_restart_under_load_fail_no_request(server: Server, token: str) -> None:
    release, instance = server.release, server.instance

    with Load(server.site, token) as load:
        deployed = server.deploy()
        restarted = server.deploy("restart")

    assert server.release > release
    assert server.release in deployed
    assert server.release in restarted
    assert server.instance == instance
    assert set(load.outcomes) == {("GET", 200), ("POST", 201)}, load.outcomes
    assert min(load.outcomes.values()) > 20
    assert server.machine.run(f"systemctl list-units --plain --no-legend '{server.slug}@*.service' | wc -l") == "1"


def test_timeouts_grow_from_workers_to_unit_to_proxy(server: Server) -> None:
    proxy = re.findall(r"proxy_read_timeout (\d+)s;", server.machine.run("nginx -T 2>/dev/null"))
    unit = re.fullmatch(r"(\d+)s", server.unit_properties("TimeoutStopUSec")["TimeoutStopUSec"])

    assert unit
    assert min(map(int, proxy)) > int(unit[1]) > server.worker_stop_seconds()


# JSON, because every log line of the service must be JSON.
LOG_NEW_CODE = "print('\"the code is new\"')"


def count_new_code(server: Server) -> int:
    journal = f"journalctl -u {server.instance} -o cat --since=-5min"
    return int(server.machine.run(f"{journal} | grep -c 'the code is new' || true"))


def test_reload_under_load_activates_new_code(server: Server, token: str) -> None:
    main, workers = server.wait_for_workers()
    code = f"/opt/{server.slug}/current/app/main.py"
    server.machine.run(f"cp -p {code} /root/main.py; echo {shlex.quote(LOG_NEW_CODE)} >> {code}")

    with Load(server.site, token) as load:
        server.machine.run(f"systemctl reload {server.instance}")
        wait_until(lambda: not server.pids()[1] & workers, 60, lambda: "all workers are new")
        wait_until(lambda: count_new_code(server) == len(workers), 60, lambda: "all workers run the new code")
    server.machine.run(f"cp -p /root/main.py {code}")

    assert server.main_pid() == main
    failed = {outcome: count for outcome, count in load.outcomes.items() if outcome[1] not in {200, 201}}
    # nginx does not retry a POST that has reached a stopping worker; `deploy.sh restart` avoids this.
    assert all(method == "POST" for method, _ in failed), failed
    assert sum(failed.values()) <= 2 * len(workers), failed


@pytest.mark.servers("postgresql")
def test_developer_deploys_over_ssh_and_is_not_locked_out(server: Server) -> None:
    server.machine.run(
        """
        useradd --create-home --shell /bin/bash developer
        echo 'developer ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/developer
        cp -R /root/project /home/developer/
        install -d -m 700 /home/developer/.ssh
        ssh-keygen -q -t ed25519 -N '' -f /home/developer/.ssh/id_ed25519
        cp /home/developer/.ssh/id_ed25519.pub /home/developer/.ssh/authorized_keys
        echo 'StrictHostKeyChecking accept-new' > /home/developer/.ssh/config
        chown -R developer: /home/developer
        """
    )
    over_ssh = "runuser -u developer -- env -C /home/developer/project deploy/vm/{} developer@localhost"

    provisioned = server.machine.run(over_ssh.format("provision.sh"))
    release = server.release
    deployed = server.machine.run(over_ssh.format("deploy.sh"))
    status = server.machine.run(over_ssh.format("deploy.sh status"))

    assert "Nothing changed" in provisioned
    assert server.release > release
    assert server.release in deployed
    assert f"* {server.release}" in status
    assert server.machine.run("ls -d /tmp/tmp.* 2>/dev/null || true") == ""
    server.machine.run("userdel --force --remove developer 2>/dev/null; rm /etc/sudoers.d/developer")
