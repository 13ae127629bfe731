"""Failed deployments, and rollbacks to an older release."""

import shlex

import pytest

from tests.support.machines import Load
from tests.support.servers import PROJECT, Server, create, is_served

pytestmark = pytest.mark.servers("postgresql")


@pytest.mark.servers("postgresql", "debian13")
def test_rollback_returns_to_the_previous_release_and_five_are_kept(server: Server) -> None:
    releases = f"/opt/{server.slug}/releases"
    server.machine.run(f"for n in 1 2 3 4 5 6; do cp -Rl {releases}/{server.release} {releases}/20000101-00000$n; done")
    before = server.release

    server.deploy()
    kept = server.machine.run(f"ls {releases}").split()
    after = server.release
    server.deploy("rollback")

    assert len(kept) == 5
    assert {before, after} <= set(kept)
    assert server.release == before
    assert f"* {before}" in server.deploy("status")


def test_deployment_is_refused_when_the_configuration_cannot_work(server: Server) -> None:
    release = server.release
    server.setting("ALLOWED_HOSTS=*")

    output = server.machine.fails(f"{PROJECT}/deploy/vm/deploy.sh")
    restart = server.machine.fails(f"{PROJECT}/deploy/vm/deploy.sh restart")

    server.machine.run(f"sed -i '$d' /etc/{server.slug}/env")
    for text in (output, restart):
        assert "ALLOWED_HOSTS: must not be *" in text
        assert "nothing was changed" in text
    assert server.release == release
    assert server.machine.run(f"ls /opt/{server.slug}/releases | grep -cx {release}") == "1"
    assert server.site.answers()


MIGRATION = """
from alembic import op

revision = "{revision}"
down_revision = "{down}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE TABLE extra (id integer)")


def downgrade() -> None:
    op.execute("DROP TABLE extra")
"""


def add_migration(server: Server, folder: str) -> str:
    """Write a migration into the copy, and return the revision before it."""
    head = server.machine.run(f"cat /opt/{server.slug}/current/.schema")
    text = MIGRATION.format(revision="9999", down=head)
    server.machine.run(f"printf %s {shlex.quote(text)} > {folder}/migrations/versions/9999_extra.py")
    return head


def test_a_release_that_does_not_start_is_rolled_back_and_its_error_is_shown(
    server: Server, copy: str, token: str
) -> None:
    release, instance = server.release, server.instance
    head = add_migration(server, copy)
    server.machine.run(f"echo 'raise RuntimeError(\"broken on purpose\")' >> {copy}/app/main.py")

    with Load(server.site, token) as load:
        output = server.machine.fails(f"{copy}/deploy/vm/deploy.sh")

    assert "broken on purpose" in output
    assert f"rolled back: {release} keeps serving" in output
    assert (server.release, server.instance) == (release, instance)
    assert {outcome[1] for outcome in load.outcomes} == {200, 201}, load.outcomes
    assert server.schema == head
    server.machine.run(f"ls /opt/{server.slug}/releases | grep -x {release}")
    assert "ready" in server.deploy("status")


def test_a_release_that_cannot_take_over_keeps_the_old_one_serving(server: Server, token: str) -> None:
    release, instance = server.release, server.instance
    in_the_way = f"/etc/{server.slug}/active.sock.new"
    server.machine.run(f"mkdir {in_the_way}")

    output = server.machine.fails(f"{PROJECT}/deploy/vm/deploy.sh")
    server.machine.run(f"rm -r {in_the_way}")

    assert f"rolled back: {release} keeps serving" in output
    assert (server.release, server.instance) == (release, instance)
    assert is_served(server, token)
    assert server.machine.run(f"systemctl list-units --plain --no-legend '{server.slug}@*.service' | wc -l") == "1"


def test_a_failed_migration_keeps_the_old_release(server: Server, copy: str) -> None:
    release = server.release
    add_migration(server, copy)
    server.machine.run(f"sed -i 's/CREATE TABLE extra (id integer)/no SQL/' {copy}/migrations/versions/9999_extra.py")

    output = server.machine.fails(f"{copy}/deploy/vm/deploy.sh")

    assert "the migration failed: the current release keeps serving" in output
    assert server.release == release
    assert "ready" in server.deploy("status")


def test_rollback_downgrades_the_schema_only_on_request(server: Server, copy: str, token: str) -> None:
    release = server.release
    head = add_migration(server, copy)
    # The file modes of a checkout under umask 077; the service must be able to read its release nevertheless.
    server.machine.run(f"chmod -R go= {copy}")
    server.deploy(folder=copy)
    newer = server.release

    refusal = server.machine.fails(f"{PROJECT}/deploy/vm/deploy.sh rollback")
    output = server.deploy("rollback", "--downgrade")

    assert newer > release
    assert "needs an older schema" in refusal
    assert f"Rolled back: {release}" in output
    assert server.release == release
    assert server.schema == head
    assert create(server, token, "After the rollback").status == 201
    server.machine.run(f"rm -rf /opt/{server.slug}/releases/{newer}")
