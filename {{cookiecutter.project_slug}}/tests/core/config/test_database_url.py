import re

import pytest
from sqlalchemy import make_url

from tests.support.config import PRODUCTION, SQLITE, load, refuse

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.mark.parametrize(
    "url", ["", "postgresql", "mysql://host/name", "sqlite://", "sqlite:///:memory:", "http://x", "postgresql://h:x/n"]
)
def test_unsupported_database_url_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert refuse(monkeypatch, SECRET_KEY="local", DATABASE_URL=url)


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "app.core.config.database_url.DRIVER_MODULES", {"postgresql": "no_such_module", "sqlite": "no_such_module"}
    )

    for problem in (
        refuse(monkeypatch, SECRET_KEY="local", DATABASE_URL=SQLITE),
        refuse(monkeypatch, SECRET_KEY="local", DATABASE_URL="postgresql://user@host/name"),
        refuse(monkeypatch, SECRET_KEY="local", DATABASE_URL="", DATABASE_NAME="data/app.sqlite3"),
        refuse(monkeypatch, SECRET_KEY="local", DATABASE_URL="", DATABASE_NAME="app", DATABASE_HOST="host"),
    ):
        assert "no_such_module, which is not installed" in problem[0]


@pytest.mark.parametrize("password", ["p@ss:w/rd?#[]%20 é", "'\"\\$&"])
def test_database_url_parts_may_contain_any_characters(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    parts = {"DATABASE_HOST": "db", "DATABASE_USER": "us@er", "DATABASE_PASSWORD": password, "DATABASE_NAME": "na/me"}

    url = load(monkeypatch, SECRET_KEY="local", **parts).url

    assert (url.username, url.password, url.host, url.port, url.database) == ("us@er", password, "db", 5432, "na/me")
    assert make_url(url.render_as_string(hide_password=False)).password == password


def test_a_folder_as_host_is_a_unix_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, SECRET_KEY="local", DATABASE_HOST="/run/postgresql", DATABASE_NAME="app")

    assert settings.url.host is None
    assert settings.url.query == {"host": "/run/postgresql"}


@pytest.mark.parametrize(
    ("elsewhere", "expected"),
    [
        ({}, "//owner@db:5433/app"),
        ({"DATABASE_OWNER_PASSWORD": "of the owner"}, "//owner:***@db:5433/app"),
        ({"DATABASE_OWNER_HOST": "[::1]"}, "//owner@[::1]:5433/app"),
        ({"DATABASE_OWNER_HOST": "/run/postgresql"}, "//owner@:5433/app?host=%2Frun%2Fpostgresql"),
    ],
)
def test_the_owner_connects_to_the_same_database(
    monkeypatch: pytest.MonkeyPatch, elsewhere: dict[str, str], expected: str
) -> None:
    service = {"DATABASE_HOST": "db", "DATABASE_PORT": "5433", "DATABASE_USER": "service", "DATABASE_NAME": "app"}
    secret = {"SECRET_KEY": "local", "DATABASE_PASSWORD": "of the service"}

    settings = load(monkeypatch, **secret, **service, DATABASE_OWNER_USER="owner", **elsewhere)

    assert str(settings.owner_url) == f"postgresql+psycopg:{expected}"
    assert settings.owner_url.password == elsewhere.get("DATABASE_OWNER_PASSWORD")
    assert settings.url.username == settings.pooled_url.username == "service"


@pytest.mark.parametrize(
    "changes", [{"DATABASE_URL": "postgresql://service@db/app"}, {"DATABASE_URL": SQLITE, "DATABASE_OWNER_USER": "o"}]
)
def test_without_an_owner_and_on_sqlite_the_service_is_the_owner(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]
) -> None:
    settings = load(monkeypatch, SECRET_KEY="local", **changes)

    assert settings.owner_url == settings.url


def test_owner_url_keeps_query_options_of_database_url(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://service:x@a:1/app?host=b:2&host=c:3&sslmode=require"
    owner = {"DATABASE_OWNER_USER": "owner", "DATABASE_OWNER_HOST": "/run/postgresql"}

    settings = load(monkeypatch, SECRET_KEY="local", DATABASE_URL=url, **owner)

    assert settings.owner_url.host is None
    assert settings.owner_url.query == {"sslmode": "require", "host": "/run/postgresql"}


def test_database_name_without_host_is_sqlite_file(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, SECRET_KEY="local", DATABASE_NAME="data/app.sqlite3")

    assert str(settings.url) == "sqlite+aiosqlite:///data/app.sqlite3"


def test_database_name_that_is_not_a_path_requires_host(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refuse(monkeypatch, SECRET_KEY="local", DATABASE_NAME="app") == [
        "DATABASE_NAME: is not a file path, and DATABASE_HOST is not set: set DATABASE_HOST (PostgreSQL), "
        "or write the path of a file such as data/app.sqlite3 (SQLite)"
    ]


def test_database_url_overrides_its_parts_with_note(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, SECRET_KEY="local", DATABASE_URL=SQLITE, DATABASE_HOST="host", DATABASE_NAME="x")

    assert str(settings.url).startswith("sqlite")
    assert "ignored" in settings.notes[0]


@pytest.mark.parametrize(
    ("query", "user", "password"),
    [
        ("user=ada&password=hunter2", "ada", "hunter2"),
        ("password=hunter2&sslmode=require", "u", "hunter2"),
        ("password=first&password=h%40nter%25", "u", "h@nter%"),
    ],
)
def test_a_password_in_the_query_of_the_database_url_is_hidden(
    monkeypatch: pytest.MonkeyPatch, query: str, user: str, password: str
) -> None:
    url = load(monkeypatch, **PRODUCTION | {"DATABASE_URL": f"postgresql://u:old@host/name?{query}"}).url

    assert (url.username, url.password) == (user, password)
    assert url.query == ({"sslmode": "require"} if "sslmode" in query else {})
    assert not {password, "old", "first"} & set(re.split(r"\W+", f"{url!r} {url.render_as_string()}"))


@pytest.mark.parametrize("name", ["sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"])
def test_other_secrets_in_the_query_of_the_database_url_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    url = f"postgresql://user:old@host/name?{name}=hunter2"

    problems = refuse(monkeypatch, **PRODUCTION | {"DATABASE_URL": url})

    assert problems == [f"DATABASE_URL: must not have {name} in the query: use a service file of libpq (PGSERVICEFILE)"]
