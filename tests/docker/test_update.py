"""Several instances: load balancing, updates and rollbacks."""

import os
import re
import time
from uuid import uuid4

from tests.support.containers import RECOVERY_SECONDS, Stack, commit, load
from tests.support.projects import Bake, BakedProject
from tests.support.serving import wait_until


def test_load_is_balanced_and_a_crashed_instance_fails_no_request(scaled: Stack, user: dict[str, str]) -> None:
    served = {address.split(":")[0] for address in scaled.serving()}
    paths = {f"/api/v1/{uuid4().hex}" for _ in range(30)}
    for path in paths:
        scaled.request("GET", path)
    wait_until(lambda: paths <= read_upstreams(scaled).keys(), RECOVERY_SECONDS, lambda: "nginx logs all requests")
    used = {upstream for path, upstream in read_upstreams(scaled).items() if path in paths}

    scaled.kill(scaled.list_containers("app")[0])
    statuses = [scaled.request("GET", "/api/v1/todos", headers=user).status_code for _ in range(60)]

    assert used == served
    assert set(statuses) == {200}
    wait_until(lambda: len(scaled.serving()) == 3, RECOVERY_SECONDS, lambda: "the instance is back")


def read_upstreams(stack: Stack) -> dict[str, str]:
    """Return the address of the instance that served each path, from nginx's log."""
    logs = stack.compose("logs", "--no-log-prefix", "proxy")
    return dict(re.findall(r'"path":"(/api/v1/[0-9a-f]{32})".*"upstream":"([0-9.]+):', logs))


MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("notes", sa.Column("id", sa.Integer(), primary_key=True))


def downgrade() -> None:
    op.drop_table("notes")
"""


def test_update_and_rollback_fail_no_request(
    scaled: Stack, origin: BakedProject, user: dict[str, str], manual: dict[str, list[str]]
) -> None:
    update, back, downgrade = manual["Update, roll back, scale"][:3]
    before = set(scaled.list_containers("app"))
    pyproject = origin.path / "pyproject.toml"
    pyproject.write_text(origin.read("pyproject.toml").replace('"0.1.0"', '"0.2.0"', 1), encoding="utf-8")
    migrations = origin.path / "migrations" / "versions"
    head = max(path.name for path in migrations.glob("*.py")).partition("_")[0]
    (migrations / "9999_notes.py").write_text(MIGRATION.format(head=head), encoding="utf-8")
    commit(origin, "Second release")

    with load(scaled, user) as clients:
        clients.wait_for_answers(20)
        scaled.follow(update)
        updated = set(scaled.list_containers("app"))
        wait_for_version(scaled, "0.2.0")
        scaled.follow(f"export TAG=1.4.0; {downgrade.replace('REVISION', head)}")
        scaled.follow(back)
        wait_for_version(scaled, "0.1.0")
        clients.wait_for_answers(20)

    restored = set(scaled.list_containers("app"))
    granted = int(scaled.execute("db", "psql", "-U", "postgres", "-Atc", "SHOW max_connections"))
    # An instance has up to three workers with a pool of ten each; an update doubles the number of instances.
    assert granted > 2 * len(before) * 3 * 10
    assert clients.failures == []
    assert clients.acknowledged <= scaled.list_todos(user)
    assert (len(before), len(updated), len(restored), len(scaled.serving())) == (3, 3, 3, 3)
    assert not before & updated
    assert not updated & restored


def wait_for_version(stack: Stack, version: str) -> None:
    # nginx caches the response for a second.
    wait_until(
        lambda: stack.request("GET", "/health").json()["version"] == version,
        RECOVERY_SECONDS,
        lambda: f"{version} answers",
    )


def test_draining_an_instance_without_requests_returns_at_once(stack: Stack) -> None:
    """An instance has no requests, for example, if it never became ready."""
    drain = ("/bin/sh", "/etc/nginx/proxy/proxy.sh", "drain")
    started = time.monotonic()

    # The name `proxy` stands for an instance without requests: it has an address, but nginx sends no requests there.
    stack.execute("proxy", *drain, "proxy")
    stack.execute("proxy", *drain)

    assert time.monotonic() - started < 20
    assert len(stack.serving()) == 1


# A stand-in for `docker` that records its arguments. One of two new instances becomes ready.
ENGINE = """#!/bin/sh
echo "$*" >> asked
case "$*" in
    "compose ps --quiet app") printf '%s\\n' old older $(grep -q scale asked && echo new newer) ;;
    *id=new\\ *health=healthy*) echo new ;;
esac
"""


def test_failed_update_drains_the_new_instance_that_became_ready(bake: Bake) -> None:
    project: BakedProject = bake()
    update, engine = project.path / "deploy" / "docker" / "update.sh", project.path / "bin" / "docker"
    update.write_text(
        update.read_text(encoding="utf-8").replace("WAIT_SECONDS=180", "WAIT_SECONDS=0"), encoding="utf-8"
    )
    engine.parent.mkdir()
    engine.write_text(ENGINE, encoding="utf-8")
    engine.chmod(0o755)

    output = project.run(
        ["sh", "-c", "deploy/docker/update.sh --no-build || echo ended with $?"],
        PATH=f"{engine.parent}:{os.environ['PATH']}",
    )

    drain = "compose exec -T proxy /bin/sh /etc/nginx/proxy/proxy.sh drain"
    refusal = "The new instances did not become ready: the old ones keep serving. The log of newer:"
    assert f"{refusal}\nended with 1" in output
    assert project.read("asked").splitlines()[-4:] == [f"{drain} new newer", "stop new newer", "rm new newer", drain]
