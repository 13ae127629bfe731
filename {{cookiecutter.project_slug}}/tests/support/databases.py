import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from pydantic import SecretStr
from pydantic_settings import BaseSettings
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.core.config.base import Environment
from app.core.config.settings import Settings
from app.core.db import migrations
from app.features import SETTINGS

SECRET_KEY = "0123456789abcdef0123456789abcdef"
# Settings that production requires, for `make_settings`.
PRODUCTION: dict[str, object] = {
    "environment": "production",
    "allowed_hosts": "localhost,example.com",
    "secret_key": "Zx81mQ0pLr7tVb3nHy6kWd9sJf2gCa5e",
}
# With TEST_DIRECT_STATEMENTS=false the tests show that the service works without app/core/db/driver.
DIRECT_STATEMENTS = os.environ.get("TEST_DIRECT_STATEMENTS") != "false"
# A value for each setting that a feature requires, such as {"payment_key": "x"}; processes get it in their environment.
REQUIRED_SETTINGS: dict[str, str] = {}
REQUIRED_ENVIRONMENT = {name.upper(): value for name, value in REQUIRED_SETTINGS.items()}

T = TypeVar("T", bound=BaseSettings)


def make_settings(url: str, **changes: object) -> Settings:
    """Return the settings of the service and of features for tests: no `.env`, and cheap password hashing.

    Raises TypeError for a name that is no setting.
    """
    values: dict[str, object] = {
        "environment": Environment.TEST,
        "secret_key": SecretStr(SECRET_KEY),
        "database_url": SecretStr(url),
        "database_pool_size": 2,
        # A pause of the machine must not fail a test; tests of timeouts set their own values.
        "database_pool_timeout_seconds": 60,
        "database_statement_timeout_seconds": 60,
        "database_direct_statements": DIRECT_STATEMENTS,
        "readiness_timeout_seconds": 60,
        # Off, because all tests share one address; the tests of the throttle switch it on.
        "throttling": False,
        "password_hash_time_cost": 1,
        "password_hash_memory_cost": 8,
        **REQUIRED_SETTINGS,
        **changes,
    }
    _refuse_unknown_names(values)
    # A feature without a value here keeps its defaults: reading its settings would also read the environment variables.
    of_features = [_read(kind, values) for kind in SETTINGS if kind.model_fields.keys() & values.keys()]
    return _read(Settings, values).join(*of_features)


def _refuse_unknown_names(values: Mapping[str, object]) -> None:
    kinds: tuple[type[BaseSettings], ...] = (Settings, *SETTINGS)
    known = {name for kind in kinds for name in kind.model_fields}
    for name in values.keys() - known:
        closest = get_close_matches(name, known, n=1)
        raise TypeError(f"There is no setting {name}." + (f" Did you mean {closest[0]}?" if closest else ""))


def _read(kind: type[T], values: Mapping[str, object]) -> T:
    chosen: dict[str, Any] = {name: value for name, value in values.items() if name in kind.model_fields}
    return kind(_env_file=None, **chosen)


def unreachable_url() -> str:
    """Return the URL of an unreachable database of the tested kind."""
    if make_url(server_url()).get_backend_name() == "sqlite":
        return "sqlite:////nowhere/at/all.sqlite3"
    return "postgresql://nobody@127.0.0.1:1/nothing"


def server_url() -> str:
    return os.environ.get("TEST_DATABASE_URL") or "sqlite://"


@contextmanager
def create_test_database(folder: Path, encoding: str = "UTF8") -> Iterator[str]:
    """Yield the URL of a new and empty database of the kind that TEST_DATABASE_URL names."""
    server = server_url()
    if make_url(server).get_backend_name() == "sqlite":
        yield f"sqlite:///{folder / uuid4().hex}.sqlite3"
        return
    name = f"test_{uuid4().hex}"
    # The locale C is valid with every encoding.
    locale = "" if encoding == "UTF8" else "LOCALE 'C'"
    execute(server, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' {locale}")
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    """Run one statement outside of the service."""
    return asyncio.run(execute_async(url, statement))


async def execute_async(url: str, statement: str) -> list[tuple[object, ...]]:
    address = make_settings(url).url
    arguments = {"client_encoding": "UTF8"} if address.get_backend_name() == "postgresql" else {}
    engine = create_async_engine(address, connect_args=arguments, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            result = await connection.execute(text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        await engine.dispose()


def add_migration(folder: Path, revision: str, previous: str | None) -> None:
    """Write a migration that does nothing into `folder`, a copy of the project's migrations."""
    lines = [f"{name} = {value!r}" for name, value in {"revision": revision, "down_revision": previous}.items()]
    functions = [f"def {name}() -> None:\n    pass" for name in ("upgrade", "downgrade")]
    (folder / "versions" / f"{revision}_extra.py").write_text("\n".join([*lines, *functions]), encoding="utf-8")


def migrate(url: str) -> None:
    asyncio.run(migrations.upgrade(make_settings(url)))
