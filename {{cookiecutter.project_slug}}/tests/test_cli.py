import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.core.config.load import env_names
from app.core.config.settings import Settings
from app.core.db.revisions import head_revision
from app.core.project import ROOT
from app.features import SETTINGS
from tests.support.databases import REQUIRED_ENVIRONMENT, SECRET_KEY, execute, migrate, unreachable_url

PASSWORD = "correct horse battery staple"
CHEAP_HASHING = {"PASSWORD_HASH_TIME_COST": "1", "PASSWORD_HASH_MEMORY_COST": "8"}
ENVIRONMENT = {"ENVIRONMENT": "test", "SECRET_KEY": SECRET_KEY, **REQUIRED_ENVIRONMENT}


@dataclass(frozen=True)
class Outcome:
    returncode: int
    stdout: str
    stderr: str


def manage(url: str, *arguments: str, stdin: str = "", **environment: str) -> Outcome:
    """Run a command in this process, with an empty environment."""
    clean: dict[str, str | None] = dict.fromkeys(env_names(Settings, *SETTINGS))
    given = {**ENVIRONMENT, "DATABASE_URL": url, **CHEAP_HASHING, **environment}
    result = CliRunner().invoke(cli, arguments, input=stdin, env=clean | given)
    # Any other exception would print a traceback.
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Outcome(result.exit_code, result.stdout, result.stderr)


def test_command_runs_as_python_module(empty_url: str) -> None:
    environment = {**os.environ, **ENVIRONMENT, "DATABASE_URL": empty_url}
    command = [sys.executable, "-m", "app", "db", "upgrade", "nonsense"]

    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603  # a command of this test, without input from outside

    assert result.returncode == 1
    assert "nonsense" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [(), ("db",), ("users",), ("sessions",), ("--help",), ("db", "--help"), ("users", "create-admin", "--help")],
)
def test_help_shows_usage(arguments: tuple[str, ...]) -> None:
    result = manage(unreachable_url(), *arguments)

    assert "Usage: " in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_check_explains_every_problem_and_shows_no_secret() -> None:
    result = manage(
        "mysql://user:hunter2@host/name",
        "check",
        ENVIRONMENT="production",
        SECRET_KEY="hunter2",
        PORT="hunter2",
        ALLOWED_HOSTS="example.com",
    )

    assert result.returncode == 3
    assert result.stdout == ""
    names = [line.split(":")[0].strip() for line in result.stderr.splitlines()[1:]]
    assert names == ["PORT", "SECRET_KEY", "DATABASE_URL"]
    assert "hunter2" not in result.stderr


def test_check_reports_ignored_settings_and_hides_password(empty_url: str) -> None:
    result = manage(empty_url, "check", DATABASE_HOST="elsewhere", DATABASE_PASSWORD="hunter2")

    assert result.returncode == 0
    assert "are ignored" in result.stdout
    assert "hunter2" not in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ("check",),
            ("db", "check"),
            ("db", "upgrade"),
            ("db", "wait", "--timeout", "1"),
            ("db", "backup", "/nowhere"),
        ),
        *(("db", "reset"), ("users", "deactivate", "ada@example.com"), ("purge",)),
    ],
)
def test_no_command_shows_a_password_in_the_query_of_the_database_url(arguments: tuple[str, ...]) -> None:
    result = manage("postgresql://127.0.0.1:1/name?user=ada&password=hunter2", *arguments, LOG_LEVEL="DEBUG")

    assert "hunter2" not in result.stdout + result.stderr


def test_schema_is_upgraded_checked_and_downgraded(empty_url: str) -> None:
    assert manage(empty_url, "db", "check").returncode == 1
    assert manage(empty_url, "db", "upgrade").returncode == 0
    assert manage(empty_url, "db", "check").returncode == 0
    assert manage(empty_url, "db", "downgrade", "base").returncode == 0

    assert execute(empty_url, "SELECT * FROM alembic_version") == []


def test_schema_is_downgraded_by_one_revision(empty_url: str) -> None:
    migrate(empty_url)

    result = manage(empty_url, "db", "downgrade", "-1")

    assert (result.returncode, result.stderr) == (0, "")
    assert execute(empty_url, "SELECT version_num FROM alembic_version") != [(head_revision(),)]


def test_a_schema_of_a_newer_release_is_left_alone(empty_url: str) -> None:
    migrate(empty_url)
    execute(empty_url, "UPDATE alembic_version SET version_num = '9999'")

    upgrade = manage(empty_url, "db", "upgrade")
    downgrade = manage(empty_url, "db", "downgrade", "base")

    assert upgrade.returncode == 0
    assert "A newer release of the service has migrated this database: the schema is unchanged." in upgrade.stdout
    assert downgrade.returncode == 1
    assert "A newer release has migrated this database: use that release" in downgrade.stderr


def test_a_migration_is_written(empty_url: str, migrations_folder: Path) -> None:
    result = manage(empty_url, "db", "revision", "--", "--it's new")

    assert result.returncode == 0
    (file,) = (migrations_folder / "versions").glob("*_it_s_new.py")
    assert file.read_text(encoding="utf-8").startswith('"""--it\'s new."""')


@pytest.mark.parametrize("arguments", [(), ("",), (" ",)])
def test_a_migration_needs_a_message(empty_url: str, migrations_folder: Path, arguments: tuple[str, ...]) -> None:
    before = set(migrations_folder.rglob("*.py"))

    result = manage(empty_url, "db", "revision", *arguments)

    assert result.returncode == 2
    assert "MESSAGE" in result.stderr
    assert set(migrations_folder.rglob("*.py")) == before


def test_a_migration_is_not_written_in_production_or_without_ruff(
    empty_url: str, migrations_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(migrations_folder.rglob("*.py"))
    production = {"SECRET_KEY": "Zx81mQ0pLr7tVb3nHy6kWd9sJf2gCa5e", "ALLOWED_HOSTS": "example.com"}

    deployed = manage(empty_url, "db", "revision", "add notes", ENVIRONMENT="production", **production)
    monkeypatch.setattr("app.cli.find_spec", lambda _name: None)
    bare = manage(empty_url, "db", "revision", "add notes")

    assert (deployed.returncode, bare.returncode) == (1, 1)
    assert "it must be local or test to generate migrations" in deployed.stderr
    assert "run `make install` or `uv sync`" in bare.stderr
    assert set(migrations_folder.rglob("*.py")) == before


def test_unknown_revision_is_reported_without_traceback(empty_url: str) -> None:
    result = manage(empty_url, "db", "upgrade", "nonsense")

    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "nonsense" in result.stderr


def test_a_reset_loads_the_sample_data_and_needs_consent(empty_url: str) -> None:
    declined = manage(empty_url, "db", "reset", stdin="n\n")
    accepted = manage(empty_url, "db", "reset", "--yes")
    again = manage(empty_url, "db", "reset", "--yes")

    assert (declined.returncode, accepted.returncode, again.returncode) == (1, 0, 0)
    assert execute(empty_url, "SELECT email FROM users") == [("demo@example.com",)]
    assert manage(empty_url, "db", "check").returncode == 0


def test_production_is_never_reset(empty_url: str) -> None:
    migrate(empty_url)

    result = manage(
        empty_url,
        "db",
        "reset",
        "--yes",
        ENVIRONMENT="production",
        SECRET_KEY="Zx81mQ0pLr7tVb3nHy6kWd9sJf2gCa5e",
        ALLOWED_HOSTS="example.com",
    )

    assert result.returncode == 1
    assert execute(empty_url, "SELECT count(*) FROM users") == [(0,)]


def test_wait_ends_when_the_database_answers(empty_url: str) -> None:
    assert manage(empty_url, "db", "wait", "--timeout", "5").returncode == 0


def test_wait_times_out_with_error_of_database() -> None:
    result = manage(unreachable_url(), "db", "wait", "--timeout", "3")

    assert result.returncode == 1
    assert "Waiting: " in result.stderr
    assert re.search("unable to open database file|Connection refused|connection failed", result.stderr)
    assert "Traceback" not in result.stderr


def test_account_is_created_changed_and_deactivated(empty_url: str) -> None:
    migrate(empty_url)

    created = manage(empty_url, "users", "create-admin", "Ada@Example.com", "--password-stdin", stdin=PASSWORD)
    again = manage(empty_url, "users", "create-admin", "ada@example.com", "--password-stdin", stdin=PASSWORD)
    changed = manage(empty_url, "users", "set-password", "ADA@example.com", "--password-stdin", stdin=f"new {PASSWORD}")
    locked = manage(empty_url, "users", "deactivate", "ada@example.com")

    assert (created.returncode, again.returncode, changed.returncode, locked.returncode) == (0, 1, 0, 0)
    assert "Another account has this e-mail address" in again.stderr
    assert execute(empty_url, "SELECT email FROM users WHERE is_admin AND NOT is_active") == [("ada@example.com",)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("users", "create-admin", "no address", "--password-stdin"), "email: "),
        (("users", "create-admin", "=?utf-8?q?ada?=@example.com", "--password-stdin"), "email: "),
        (("users", "create-admin", "ada@example.com", "--password-stdin"), "password: must have 12 to "),
        (("users", "set-password", "ada@example.com", "--password-stdin"), "password: must have 12 to "),
        (("users", "deactivate", "nobody@example.com"), "User not found"),
    ],
)
def test_invalid_account_or_password_is_reported_without_traceback(
    empty_url: str, arguments: tuple[str, ...], said: str
) -> None:
    migrate(empty_url)

    result = manage(empty_url, *arguments, stdin="short\n")

    assert result.returncode == 1
    assert result.stderr.startswith(said)
    assert "Traceback" not in result.stderr
    assert "short" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("purge",), "Done: 0 rows deleted.\n"),
        (("users", "reencrypt"), "Done: 0 secrets re-encrypted.\n"),
        (
            ("users", "disable-second-factor", "ada@example.com"),
            "ada@example.com has no second factor any more.\n",
        ),
        (("outbox", "list"), ""),
        (("outbox", "retry"), "E-mails queued again: 0\n"),
    ],
)
def test_commands_of_operator_print_their_result(live_url: str, arguments: tuple[str, ...], said: str) -> None:
    manage(live_url, "users", "create-admin", "ada@example.com", "--password-stdin", stdin=f"{PASSWORD}\n")

    result = manage(live_url, *arguments)

    assert (result.returncode, result.stdout, result.stderr) == (0, said, "")


def test_openapi_is_printed_as_json(empty_url: str) -> None:
    result = manage(empty_url, "openapi")

    assert json.loads(result.stdout)["openapi"].startswith("3.")


def test_all_sessions_end_only_after_confirmation(empty_url: str) -> None:
    migrate(empty_url)

    refused = manage(empty_url, "sessions", "end-all", stdin="n\n")
    confirmed = manage(empty_url, "sessions", "end-all", stdin="y\n")
    unasked = manage(empty_url, "sessions", "end-all", "--yes")
    unknown = manage(empty_url, "sessions", "end-all", "nobody@example.com", "--yes")

    assert "all accounts" in refused.stdout
    assert [each.returncode for each in (refused, confirmed, unasked, unknown)] == [1, 0, 0, 1]
    assert "Sessions ended: 0" in unasked.stdout
