"""Privileges, networks and database roles of the containers, and the order in which they start and stop."""

import json
import re

import pytest

from tests.support.containers import HARDENED, RUNNING, Stack, address_in, describe_network, list_with_exited


@pytest.mark.parametrize("service", RUNNING)
def test_containers_have_no_capabilities_and_a_read_only_root(stack: Stack, service: str) -> None:
    status = stack.execute(service, "cat", "/proc/1/status")

    # The bounding set also limits setuid programs.
    assert re.search(r"(?m)^CapBnd:\s+0+$", status)
    assert re.search(r"(?m)^NoNewPrivs:\s+1$", status)
    assert not re.search(r"(?m)^Uid:\s+0", status)
    assert "Read-only file system" in stack.execute(service, "touch", "/etc/x", check=False)


@pytest.mark.parametrize("service", HARDENED)
def test_containers_are_confined_and_limited(stack: Stack, service: str) -> None:
    host = stack.inspect(list_with_exited(stack, service)[0])["HostConfig"]
    log = host["LogConfig"]

    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert not host["Privileged"]
    assert 0 < host["Memory"] <= 1024**3
    assert 0 < host["PidsLimit"] <= 256
    # Writable folders are in memory and have a size limit.
    assert host["Tmpfs"]
    assert all("size=" in options for options in host["Tmpfs"].values())
    assert (log["Type"], log["Config"]) == ("json-file", {"max-size": "10m", "max-file": "5"})
    assert host["RestartPolicy"]["Name"] == ("no" if service == "migrate" else "unless-stopped")


def test_settings_in_secrets_env_reach_the_containers(stack: Stack) -> None:
    file = stack.project.path / "secrets" / "env"
    secret = r'a${HOME}b$HOME$$ "c" \d #e'
    file.write_text(f"REGISTRATION_OPEN=false\nSMTP_PASSWORD='{secret}'\n", encoding="utf-8")
    try:
        services = json.loads(stack.compose("config", "--format", "json"))["services"]
        output = stack.compose("run", "--rm", "--no-deps", "app", "env")
    finally:
        file.unlink()

    assert {"REGISTRATION_OPEN=false", f"SMTP_PASSWORD={secret}"} <= {*output.splitlines()}
    # All services that use the database must have the same settings.
    configured = {
        name for name, service in services.items() if "REGISTRATION_OPEN" in (service.get("environment") or {})
    }
    assert configured == {"app", "migrate", "backup"}


def test_only_the_proxy_is_published(stack: Stack) -> None:
    published = {
        service: stack.inspect(container)["NetworkSettings"]["Ports"]
        for service in RUNNING
        for container in stack.list_containers(service)
    }

    assert {service for service, ports in published.items() if any(ports.values())} == {"proxy"}
    # IPv4 only: the network has no IPv6, so every IPv6 client would have the address of the network's gateway.
    proxy = stack.inspect(stack.list_containers("proxy")[0])
    bindings = [binding for port in proxy["HostConfig"]["PortBindings"].values() for binding in port]
    assert [binding["HostIp"].count(".") for binding in bindings] == [3, 3]


def test_only_proxy_and_application_are_on_the_network_with_internet_access(stack: Stack) -> None:
    members: dict[str, set[str]] = {}
    for service in HARDENED:
        for network in stack.inspect(list_with_exited(stack, service)[0])["NetworkSettings"]["Networks"]:
            members.setdefault(network.removeprefix(f"{stack.project.path.name}_"), set()).add(service)
    is_internal = {name: describe_network(stack, name)["Internal"] for name in members}

    assert members == {"front": {"proxy", "app"}, "back": {"app", "migrate", "backup", "db"}}
    assert is_internal == {"front": False, "back": True}


def test_proxy_cannot_reach_the_database_and_the_database_cannot_reach_the_internet(stack: Stack) -> None:
    url = f"telnet://{address_in(stack, 'db', 'back')}:5432"

    named = stack.execute("proxy", "sh", "-c", "getent hosts db || echo unknown")
    reached = stack.execute("proxy", "sh", "-c", f"curl --silent --max-time 2 {url} < /dev/null; echo =$?")
    routes = stack.execute("db", "cat", "/proc/net/route")

    assert "unknown" in named
    # curl exits with 28 after a timeout and with 7 if there is no route.
    assert reached.strip() in {"=28", "=7"}
    assert not re.search(r"(?m)^\w+\s+00000000\s", routes)


def test_application_connects_without_superuser_rights(stack: Stack, user: dict[str, str]) -> None:
    rights = "rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
    query = "SELECT {} FROM pg_roles JOIN pg_stat_activity ON rolname = usename WHERE client_addr IS NOT NULL"
    stack.request("GET", "/api/v1/todos", headers=user)

    found = stack.execute("db", "psql", "-U", "postgres", "-Atc", query.format(rights))

    assert set(found.split()) == {"f|f|f|f|f"}


def test_application_neither_owns_its_tables_nor_has_the_owners_password(stack: Stack) -> None:
    owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
    as_service = ["db", "psql", "-U", "service", "-c"]
    forget = ["TRUNCATE audit_events", "ALTER TABLE audit_events DISABLE TRIGGER ALL", "SET ROLE owner"]

    owner = stack.execute("db", "psql", "-U", "postgres", "-Atc", owners, "service").split()
    secrets = stack.execute("app", "ls", "/run/secrets").split()
    refusals = [stack.execute(*as_service, statement, check=False) for statement in forget]

    assert owner == ["owner"]
    assert secrets == ["database_password", "secret_key"]
    assert "OWNER" not in stack.execute("app", "env")
    for refusal, reason in zip(refusals, ("permission denied", "must be owner", "permission denied"), strict=True):
        assert reason in refusal


def test_stop_timeouts_grow_from_workers_to_application_to_proxy(stack: Stack) -> None:
    config = json.loads(stack.compose("config", "--format", "json"))["services"]["app"]
    proxy, app, db = (
        stack.inspect(stack.list_containers(service)[0])["Config"]["StopTimeout"] for service in ("proxy", "app", "db")
    )

    assert proxy > app > int(config["environment"]["GRACEFUL_TIMEOUT_SECONDS"])
    # PostgreSQL needs time to close its connections and to write a checkpoint.
    assert db >= 60


def test_containers_start_after_their_dependencies_are_ready(stack: Stack) -> None:
    services = json.loads(stack.compose("config", "--format", "json"))["services"]

    needed = {
        service: {name: need["condition"] for name, need in services[service].get("depends_on", {}).items()}
        for service in HARDENED
    }

    assert needed == {
        "proxy": {"app": "service_healthy"},
        "app": {"migrate": "service_completed_successfully"},
        "backup": {"migrate": "service_completed_successfully"},
        "migrate": {"db": "service_healthy"},
        "db": {},
    }
    assert {service for service in services if "healthcheck" in services[service]} == {"proxy", "backup", "db"}


def test_application_does_not_start_without_its_schema(stack: Stack) -> None:
    other = ["--project-name", f"{stack.project.path.name}-gate"]
    try:
        # Production refuses `*` as an allowed host, so the migration fails.
        output = stack.compose(*other, "up", "--detach", "--no-build", "app", check=False, DOMAIN="*")
        states = stack.compose(*other, "ps", "--all", "--format", "{{.Service}} {{.State}}", "app", "db")
    finally:
        stack.compose(*other, "down", "--volumes", "--timeout", "5")

    assert "didn't complete successfully" in output
    assert set(states.splitlines()) == {"db running", "app created"}
