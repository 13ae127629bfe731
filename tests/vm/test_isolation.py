"""Privileges of the units, of the service's account and of its dependencies, and the ports that the firewall closes."""

import json
import re
import shlex

import pytest

from tests.support.servers import Server, reaches


def test_units_are_hardened_and_valid(server: Server) -> None:
    kinds = ".service,.socket,.target,.timer,@.service,@.socket"
    listing = f"cd /etc/systemd/system && ls {server.slug}{{-*,}}{{{kinds}}} 2>/dev/null || true"
    units = server.machine.run(listing).replace("@.", "@a.").split()

    # On PostgreSQL, a separate unit backs up the database.
    more = int(server.project.answers["database"] == "postgresql")
    assert len(units) == 9 + more
    complaints = server.machine.run(f"systemd-analyze verify {shlex.join(units)} 2>&1")
    services = [unit for unit in units if unit.endswith(".service")]
    analyze = "systemd-analyze security --no-pager {} | tail -n 1"
    scores = {unit: server.machine.run(analyze.format(unit)) for unit in services}

    assert complaints == ""
    assert len(scores) == 4 + more
    exposures = {unit: float(score.split(": ")[1].split()[0]) for unit, score in scores.items()}
    assert max(exposures.values()) <= 2.5, exposures


def test_only_the_services_account_reads_the_secrets_and_it_has_no_shell(server: Server) -> None:
    account = server.slug[:31]

    assert server.machine.run(f"getent passwd {account}").endswith("/usr/sbin/nologin")
    assert server.machine.run(f"stat -c '%a %U %G' /etc/{server.slug}/env") == f"640 root {account}"
    folders = server.machine.run(f"stat -c '%a %U' /var/lib/{server.slug} /var/backups/{server.slug}").splitlines()
    assert folders == [f"700 {account}", f"{'700' if server.owner == account else '710'} {server.owner}"]
    assert server.machine.run(f"find /opt/{server.slug}/ ! -user root") == ""
    assert server.machine.run(f"stat -c '%a %U %G' /etc/{server.slug}/self-signed/privkey.pem") == "600 root root"


# A malicious dependency: its code runs when it is built, and at every start of a Python that has it installed.
# Building it requires no other package.
DEPENDENCY = {
    "pyproject.toml": """
[project]
name = "greedy"
version = "1"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
""",
    "backend.py": """
import base64, zipfile
from pathlib import Path
import attempt

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "greedy-1-py3-none-any.whl"
    with zipfile.ZipFile(Path(folder, name), "w") as wheel:
        wheel.writestr("built.json", attempt.report())
        wheel.writestr("attempt.py", Path(attempt.__file__).read_text())
        wheel.writestr("greedy.pth", "import attempt; attempt.leave_report()\\n")
        wheel.writestr("greedy-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: greedy\\nVersion: 1\\n")
        wheel.writestr("greedy-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("greedy-1.dist-info/RECORD", "")
    return name
""",
    "attempt.py": """
import glob, json, os

def report():
    done = []
    for path in [
        "/root/greedy", "/etc/greedy", "/usr/greedy", "/var/lib/greedy", "SLUG_FOLDER/greedy",
        *glob.glob("SLUG_FOLDER/releases/*/deploy/vm/deploy.sh"), *glob.glob("SLUG_FOLDER/releases/*/app/main.py"),
    ]:
        try:
            open(path, "a").close()
            done.append(path)
        except OSError:
            pass
    try:
        open("/etc/SLUG/env").close()
        done.append("read the secrets")
    except OSError:
        pass
    return json.dumps({"user": os.getuid(), "done": done})

def leave_report():
    try:
        with open(".build/started.json", "w") as file:
            file.write(report())
        os.chmod(".build/started.json", 0o4777)
    except OSError:
        pass
""",
}


@pytest.mark.servers("postgresql", "debian13")
def test_code_of_a_dependency_never_runs_as_root(server: Server, copy: str) -> None:
    base = f"/opt/{server.slug}"
    before = server.release
    for name, text in DEPENDENCY.items():
        written = text.replace("SLUG_FOLDER", base).replace("SLUG", server.slug)
        server.machine.run(f"install -d /srv/greedy; printf %s {shlex.quote(written)} > /srv/greedy/{name}")
    add = 's|^dependencies = \\[|&\\n    "greedy @ file:///srv/greedy",|'
    server.machine.run(f"sed -i {shlex.quote(add)} {copy}/pyproject.toml")

    server.deploy(folder=copy)

    server.machine.fails("ls /root/greedy")
    release = f"{base}/releases/{server.release}"
    built = json.loads(server.machine.run(f"cat {release}/.venv/lib/python3*/site-packages/built.json"))
    started = json.loads(server.machine.run(f"cat {release}/.build/started.json"))
    builder = int(server.machine.run(f"id -u {server.slug[:25]}-build"))
    assert built == started == {"user": builder, "done": []}
    assert server.machine.run(f"find {base}/ ! -user root") == ""
    assert server.machine.run(f"find {base}/ ! -type l -perm /7022") == ""
    server.deploy("rollback")
    server.machine.run(f"rm -rf {release} /srv/greedy")
    assert server.release == before


@pytest.mark.servers("postgresql", "debian13")
def test_service_cannot_read_backups_or_cloud_credentials(server: Server) -> None:
    pid, group = server.main_pid(), f"$(systemctl show -P ControlGroup {server.instance})"
    inside = f'echo 0 > "/sys/fs/cgroup{group}/cgroup.procs"; exec'
    ask = "curl --silent --show-error --max-time 20 http://169.254.169.254:8000/"
    server.machine.run(f"systemctl start {server.slug}-backup.service")
    assert server.machine.run(f"ls /var/backups/{server.slug}") != ""
    assert server.machine.run(f"nsenter --mount --target {pid} ls /var/backups/{server.slug}") == ""
    server.machine.run(
        """
        ip address add 169.254.169.254/32 dev lo
        systemd-run --quiet --unit=metadata python3 -m http.server --bind 169.254.169.254 --directory /srv 8000
        timeout 60 bash -c 'until (: </dev/tcp/169.254.169.254/8000) 2>/dev/null; do sleep 0.1; done'
        """
    )
    try:
        outside = server.machine.run(ask)
        refused = server.machine.fails(f"{inside} {ask}")
    finally:
        server.machine.run("systemctl stop metadata; ip address del 169.254.169.254/32 dev lo")

    assert "Directory listing" in outside
    assert re.search(r"curl: \((7|28)\)", refused), refused


@pytest.mark.servers("postgresql", "debian13")
def test_service_cannot_execute_files_that_it_can_write(server: Server) -> None:
    enter = f"nsenter --mount --target {server.main_pid()}"
    folders = f"/var/lib/{server.slug} /tmp /var/tmp /dev/shm"

    refused = server.machine.run(
        f"""
        for folder in {folders}; do
            {enter} cp /usr/bin/true $folder/program
            {enter} $folder/program 2>&1 || echo "exit $?"
            {enter} rm $folder/program
        done
        """
    )
    written = server.machine.fails(f"{enter} touch /usr/written /opt/{server.slug}/releases/written")
    assert refused.count("Permission denied") == len(folders.split())
    assert written.count("Read-only file system") == 2


@pytest.mark.servers("postgresql")
def test_unit_limits_apply_to_the_service(server: Server) -> None:
    shown = server.unit_properties("MemoryMax", "TasksMax", "LimitNOFILE", "OOMPolicy", "Restart")
    memory = int(server.machine.run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) * 1024
    files = server.machine.run(f"sed -n 's/^Max open files *//p' /proc/{server.main_pid()}/limits")

    assert 0.79 < int(shown.pop("MemoryMax")) / memory < 0.81
    assert shown == {"TasksMax": "256", "LimitNOFILE": "16384", "OOMPolicy": "continue", "Restart": "always"}
    assert files.split()[:2] == ["16384", "16384"]


@pytest.mark.servers("postgresql")
def test_firewall_closes_every_other_port(server: Server) -> None:
    server.machine.run("systemd-run --quiet --unit=open-port python3 -m http.server 8000")
    server.machine.run("timeout 60 bash -c 'until (: </dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.1; done'")
    address = server.site.address

    closed = [reaches(address, port) for port in (5432, 8000)]
    server.machine.run("ufw --force disable")
    opened = reaches(address, 8000)
    server.machine.run("ufw --force enable; systemctl stop open-port")

    assert closed == [False, False]
    assert opened
    assert [reaches(address, port) for port in (22, 80, 443)] == [True] * 3
