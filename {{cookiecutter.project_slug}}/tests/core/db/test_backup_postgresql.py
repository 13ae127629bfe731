"""Backups of a database that other roles also use, by roles with few rights."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL, make_url

from app.core.db.backup import BackupError, restore_backup, write_backup
from app.core.db.backup import postgresql as backup_postgresql
from tests.support.databases import create_test_database, execute, make_settings, migrate, server_url
from tests.test_cli import Outcome, manage

pytestmark = pytest.mark.skipif(server_url().startswith("sqlite"), reason="the tests run on SQLite")

PASSWORD = "correct-horse"
# The first of these extensions that the server has available.
EXTENSION = (
    "SELECT name FROM pg_available_extensions WHERE name IN ('citext', 'hstore', 'vector') ORDER BY name LIMIT 1"
)
MAY_READ = "SELECT has_table_privilege('{}', '{}', 'SELECT')"


@dataclass(frozen=True)
class Tenant:
    """A database of the server's administrator, and two roles that use it: the service's role and another one."""

    server: URL
    role: str
    other: str

    def run(self, statement: str, role: str = "") -> list[tuple[object, ...]]:
        """Run a statement as `role`, by default as the administrator."""
        return execute(self.url_of(role), statement)

    def url_of(self, role: str = "") -> str:
        url = self.server.set(username=role, password=PASSWORD) if role else self.server
        return url.render_as_string(hide_password=False)

    @property
    def url(self) -> str:
        return self.url_of(self.role)

    def back_up(self, file: Path) -> Path:
        return write_backup(make_settings(self.url).url, file)

    def restore(self, file: Path) -> Outcome:
        return manage(self.url, "db", "restore", str(file), "--yes")

    def may_read(self, table: str, role: str = "") -> bool:
        return self.run(MAY_READ.format(role or self.other, table)) == [(True,)]


@pytest.fixture
def roles() -> Iterator[tuple[str, str]]:
    names = [f"{name}_{uuid4().hex}" for name in ("service", "other")]
    for name in names:
        execute(server_url(), f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
    yield names[0], names[1]
    for name in names:
        execute(server_url(), f"DROP ROLE IF EXISTS {name}")


def make_tenant(url: str, roles: tuple[str, str]) -> Tenant:
    tenant = Tenant(make_url(url), *roles)
    tenant.run(f"GRANT CREATE ON SCHEMA public TO {tenant.role}, {tenant.other}")
    return tenant


@pytest.fixture
def tenant(empty_url: str, roles: tuple[str, str]) -> Iterator[Tenant]:
    tenant = make_tenant(empty_url, roles)
    migrate(tenant.url)
    yield tenant
    for role in roles:
        tenant.run(f"DROP OWNED BY {role} CASCADE")


def add_user(tenant: Tenant) -> None:
    tenant.run(
        "INSERT INTO users VALUES (gen_random_uuid(), 'ada@example.com', 'Ω', '', true, false, NULL, now(), now())",
        tenant.role,
    )


def test_restore_keeps_objects_of_other_owners(tenant: Tenant, tmp_path: Path) -> None:
    add_user(tenant)
    ((extension,),) = tenant.run(EXTENSION)
    tenant.run(f"CREATE EXTENSION {extension}")
    tenant.run("CREATE SCHEMA reports")
    tenant.run("CREATE TABLE reports.days (day date)")
    tenant.run('CREATE TABLE "their % table" (id integer)', tenant.other)
    tenant.run("CREATE FUNCTION answer() RETURNS integer LANGUAGE sql RETURN 42", tenant.other)
    file = tenant.back_up(tmp_path / "backup")
    tenant.run('INSERT INTO "their % table" VALUES (1)', tenant.other)
    tenant.run("DELETE FROM users", tenant.role)
    tenant.run("CREATE TABLE later (id integer)", tenant.role)

    restored = tenant.restore(file)

    assert (restored.returncode, restored.stderr) == (0, "")
    assert tenant.run("SELECT name FROM users", tenant.role) == [("Ω",)]
    assert tenant.run('SELECT * FROM "their % table"', tenant.other) == [(1,)]
    assert tenant.run("SELECT answer(), count(*) FROM reports.days") == [(42, 0)]
    assert (extension,) in tenant.run("SELECT extname FROM pg_extension")
    assert tenant.run("SELECT to_regclass('later')") == [(None,)]


def test_restore_recovers_objects_of_every_kind(tenant: Tenant, tmp_path: Path) -> None:
    for statement in (
        "CREATE TYPE color AS ENUM ('red', 'green')",
        "CREATE DOMAIN positive AS integer CHECK (VALUE > 0)",
        "CREATE SEQUENCE numbers START 7",
        "CREATE FUNCTION next() RETURNS bigint LANGUAGE sql AS $$ SELECT nextval('numbers') $$",
        "CREATE TABLE things (id bigint DEFAULT next(), color color, size positive, n serial, i integer GENERATED"
        " ALWAYS AS IDENTITY) PARTITION BY RANGE (id)",
        "CREATE TABLE things_1 PARTITION OF things FOR VALUES FROM (0) TO (100)",
        "INSERT INTO things (color, size) VALUES ('red', 1)",
        "CREATE VIEW red AS SELECT id FROM things WHERE color = 'red'",
        "CREATE MATERIALIZED VIEW reds AS SELECT count(*) FROM red",
        "CREATE FUNCTION count_red(things) RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM red; END",
        "CREATE COLLATION plain (LOCALE = 'C')",
        "CREATE TABLE sorted (name text COLLATE plain)",
        "CREATE TEXT SEARCH DICTIONARY words (TEMPLATE = pg_catalog.simple)",
        "CREATE TEXT SEARCH CONFIGURATION search (COPY = pg_catalog.simple)",
        "ALTER TEXT SEARCH CONFIGURATION search ALTER MAPPING FOR word WITH words",
        "CREATE FUNCTION nearly(integer, integer) RETURNS boolean LANGUAGE sql RETURN abs($1 - $2) < 2",
        "CREATE OPERATOR ~~~ (LEFTARG = integer, RIGHTARG = integer, FUNCTION = nearly)",
    ):
        tenant.run(statement, tenant.role)
    file = tenant.back_up(tmp_path / "backup")
    tenant.run("DELETE FROM things", tenant.role)

    restored = [tenant.restore(file) for _ in range(2)]

    assert [(outcome.returncode, outcome.stderr) for outcome in restored] == [(0, "")] * 2
    assert tenant.run("SELECT id, count_red(things), next() FROM things", tenant.role) == [(7, 1, 8)]
    assert tenant.run("SELECT * FROM reds", tenant.role) == [(1,)]
    assert tenant.run("SELECT 1 ~~~ 2, to_tsvector('search', 'Word')", tenant.role) == [(True, "'word':1")]


def test_restore_keeps_current_grants(tenant: Tenant, tmp_path: Path) -> None:
    other = tenant.other
    tenant.run(f"GRANT SELECT ON users TO {other}", tenant.role)
    file = tenant.back_up(tmp_path / "backup")
    tenant.run(f"REVOKE ALL ON users FROM {other}", tenant.role)
    tenant.run(f"GRANT SELECT (email) ON users TO {other}", tenant.role)
    tenant.run(f"GRANT SELECT ON sessions TO {other} WITH GRANT OPTION", tenant.role)
    # These privileges apply only to tables created later; the restored tables must keep their own grants.
    tenant.run(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO {other}", tenant.role)

    restored = tenant.restore(file)

    tenant.run("CREATE TABLE later (id integer)", tenant.role)
    assert (restored.returncode, restored.stderr) == (0, "")
    assert tenant.run(f"SELECT has_column_privilege('{other}', 'users', 'email', 'SELECT')") == [(True,)]
    assert [tenant.may_read(table) for table in ("users", "second_factors", "sessions", "later")] == [
        False,
        False,
        True,
        True,
    ]
    assert tenant.run(f"SELECT has_table_privilege('{other}', 'sessions', 'SELECT WITH GRANT OPTION')") == [(True,)]


def test_restore_to_empty_database_applies_grants_of_existing_roles(
    tenant: Tenant, roles: tuple[str, str], tmp_path: Path
) -> None:
    gone = f"gone_{uuid4().hex}"
    tenant.run(f"CREATE ROLE {gone}")
    tenant.run(f"GRANT SELECT ON users TO {gone}, {tenant.other}", tenant.role)
    tenant.run(f"GRANT SELECT ON sessions TO {tenant.other}", tenant.role)
    file = tenant.back_up(tmp_path / "backup")
    tenant.run(f"DROP OWNED BY {gone}")
    tenant.run(f"DROP ROLE {gone}")
    with create_test_database(tmp_path) as url:
        empty = make_tenant(url, roles)

        restored = empty.restore(file)

        assert restored.returncode == 0
        assert restored.stderr == f'A grant of database rights was not restored: role "{gone}" does not exist.\n'
        assert [empty.may_read(table) for table in ("users", "sessions")] == [True, True]
        assert manage(empty.url, "db", "check").returncode == 0


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW reports.people AS SELECT email FROM users",
        "CREATE MATERIALIZED VIEW reports.people AS SELECT email FROM users",
        "CREATE TABLE reports.people (id uuid REFERENCES users (id))",
        "CREATE TABLE reports.people () INHERITS (users)",
        "CREATE FUNCTION reports.people() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM users; END",
        "CREATE FUNCTION reports.people() RETURNS SETOF users LANGUAGE sql AS 'SELECT NULL::users'",
        "CREATE VIEW people AS SELECT email FROM users",
        "CREATE PUBLICATION people FOR TABLE users",
    ],
)
def test_restore_stops_before_dropping_tables_that_other_objects_depend_on(
    tenant: Tenant, tmp_path: Path, statement: str
) -> None:
    file = tenant.back_up(tmp_path / "backup")
    tenant.run("CREATE SCHEMA reports")
    tenant.run(statement)
    add_user(tenant)

    restored = tenant.restore(file)

    assert restored.returncode == 1
    assert "people" in restored.stderr
    assert "first, and create" in restored.stderr
    assert "Traceback" not in restored.stderr
    assert tenant.run("SELECT name FROM users", tenant.role) == [("Ω",)]
    # A backup is still possible, because it contains only the service's own objects.
    assert tenant.back_up(tmp_path / "again").exists()


def test_service_in_separate_schema_is_restored_without_changing_its_neighbour(tenant: Tenant, tmp_path: Path) -> None:
    tenant.run(f'CREATE SCHEMA "Tenant 1" AUTHORIZATION {tenant.role}')
    own = Tenant(tenant.server.update_query_dict({"options": '-csearch_path="Tenant\\ 1"'}), tenant.role, tenant.other)
    migrate(own.url)
    add_user(own)
    file = own.back_up(tmp_path / "backup")
    own.run("DELETE FROM users", own.role)
    add_user(tenant)
    tenant.run("UPDATE users SET name = 'neighbour'", tenant.role)

    elsewhere = tenant.restore(file)
    restored = own.restore(file)

    assert elsewhere.returncode == 1
    assert 'SET search_path TO "Tenant 1" (if DATABASE_URL sets search_path' in elsewhere.stderr
    assert (restored.returncode, restored.stderr) == (0, "")
    assert own.run("SELECT name FROM users", own.role) == [("Ω",)]
    assert tenant.run("SELECT name FROM users", tenant.role) == [("neighbour",)]
    tenant.run('DROP SCHEMA "Tenant 1" CASCADE')
    assert "None of the schemas in search_path exists: create one of them first" in own.restore(file).stderr


def test_member_of_owner_role_can_restore_and_ownership_is_kept(tenant: Tenant, tmp_path: Path) -> None:
    tenant.run(f"GRANT {tenant.role} TO {tenant.other}")
    add_user(tenant)
    member = Tenant(tenant.server, tenant.other, tenant.role)
    file = member.back_up(tmp_path / "backup")

    restored = member.restore(file)

    owners = tenant.run("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
    assert (restored.returncode, restored.stderr) == (0, "")
    assert owners == [(tenant.role,)]
    assert tenant.run("SELECT name FROM users", tenant.role) == [("Ω",)]


def test_backup_and_restore_refuse_service_table_of_another_owner(tenant: Tenant, tmp_path: Path) -> None:
    file = tenant.back_up(tmp_path / "backup")
    tenant.run("ALTER TABLE sessions OWNER TO CURRENT_USER")

    with pytest.raises(BackupError, match=f'ALTER TABLE sessions OWNER TO "{tenant.role}"'):
        tenant.back_up(tmp_path / "another")
    with pytest.raises(BackupError, match="ALTER TABLE sessions OWNER TO"):
        restore_backup(make_settings(tenant.url).url, file)


PREPARATIONS = {
    'tables: run GRANT CREATE ON SCHEMA "public" TO "{role}"': "REVOKE CREATE ON SCHEMA public FROM {role}, PUBLIC",
    "belong to the role {other}: set DATABASE_OWNER_USER to this role": "ALTER TABLE alembic_version OWNER TO {other}",
    "is read-only: restore to the primary server": "ALTER ROLE {role} SET default_transaction_read_only = on",
    "has no table alembic_version, but the role": "ALTER TABLE alembic_version RENAME TO versions",
}


@pytest.mark.parametrize("reason", PREPARATIONS)
def test_restore_checks_requirements_before_dropping_anything(tenant: Tenant, tmp_path: Path, reason: str) -> None:
    names = {"role": tenant.role, "other": tenant.other}
    file = tenant.back_up(tmp_path / "backup")
    add_user(tenant)
    tenant.run(PREPARATIONS[reason].format(**names))

    restored = tenant.restore(file)

    assert restored.returncode == 1
    assert reason.format(**names) in restored.stderr
    assert "Traceback" not in restored.stderr
    assert tenant.run("SELECT name FROM users") == [("Ω",)]


def test_database_that_is_not_utf8_can_be_backed_up_but_not_restored_to(
    tenant: Tenant, roles: tuple[str, str], tmp_path: Path
) -> None:
    add_user(tenant)
    file = tenant.back_up(tmp_path / "backup")
    with create_test_database(tmp_path, "SQL_ASCII") as url:
        wrong = make_tenant(url, roles)
        refused = wrong.restore(file)
        # Fills the database as a release could before the service required UTF-8.
        address = backup_postgresql._database(make_settings(wrong.url).url)
        backup_postgresql._run(
            ["pg_restore", "--no-owner", "--no-privileges", "--schema=public", address, str(file)],
            make_settings(wrong.url).url,
        )
        rescued = wrong.back_up(tmp_path / "rescued")
    tenant.run("DELETE FROM users", tenant.role)

    restored = tenant.restore(rescued)

    assert refused.returncode == 1
    assert "The database has the encoding SQL_ASCII: restore to a database with the encoding UTF8" in refused.stderr
    assert (restored.returncode, restored.stderr) == (0, "")
    assert tenant.run("SELECT name FROM users", tenant.role) == [("Ω",)]


def test_backup_and_restore_ignore_postgresql_environment_variables(
    tenant: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_user(tenant)
    with monkeypatch.context() as patch:
        patch.setenv("PGCLIENTENCODING", "LATIN1")
        patch.setenv("PGOPTIONS", "-c search_path=nowhere -c default_transaction_read_only=on")
        patch.setenv("PGDATESTYLE", "German")
        patch.setenv("PGTZ", "America/New_York")
        restored = tenant.restore(tenant.back_up(tmp_path / "backup"))

    assert (restored.returncode, restored.stderr) == (0, "")
    assert tenant.run("SELECT name FROM users", tenant.role) == [("Ω",)]
