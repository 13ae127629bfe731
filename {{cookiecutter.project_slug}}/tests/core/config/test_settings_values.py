"""Many values for each setting: the configuration refuses a value with a clear sentence, or the service works."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin
from uuid import uuid4

import pytest
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.core.config.load import ConfigurationError, env_names, load_settings
from app.core.config.server import ServerSettings
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.observability.logging import logging_config
from app.core.process.sockets import bind_address, trusted_proxies
from app.core.process.workers import worker_count
from app.features import SETTINGS
from tests.support.accounts import PASSWORD
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import REQUIRED_ENVIRONMENT, make_settings

KINDS: tuple[type[BaseSettings], ...] = (Settings, *SETTINGS)
FIELDS = {name: field for kind in KINDS for name, field in kind.model_fields.items()}
SECRET = "Zx81mQ0pLr7tVb3nHy6kWd9sJf2gCa5e"
BASE = {"SECRET_KEY": SECRET, "DATABASE_URL": "sqlite:////tmp/unused.sqlite3", **REQUIRED_ENVIRONMENT}


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TEXTS = (
    *(" ", "a b", "\n", "\udcff", "\u202e", "x" * 5000, "é", "☃", "'", '"', "\\"),
    *words("x * - -1 ../.. ${HOME} % %00 null none true [ { [] [1] x,y , a/b / ~ @ a@b :"),
)
HOSTS = (
    *words("example.com EXAMPLE.com example.com. bücher.example BÜCHER.example my_app localhost ::1 [::1] [::1]:80"),
    *words("192.0.2.1 192.0.2.1:80 999.1.1.1 1.2.3 example.com:80 https://example.com example.com/x /run/x a,b"),
    *words("*.example.com a*.example.com *.192.0.2.1 a..b -a.b user@host"),
    *("x" * 64 + ".com", "x." * 200 + "com"),
)
ORIGINS = (
    *words("https://example.com https://example.com/ HTTPS://EXAMPLE.com https://example.com:443 http://x:80"),
    *words("https://bücher.example http://[::1]:3000 http://[::1 https://*.example.com https://example.com:99999"),
    *words("https://example.com:0 https://u:p@example.com https://example.com/x https://example.com?x https://"),
    *words("https://example.com#x //example.com ftp://example.com https://999.1.1.1 https:///x"),
    "https://a b",
)
PROXIES = (
    *words("10.0.0.1 10.0.0.0/8 10.0.0.5/8 10.0.0.0/33 10.0.0.0/255.0.0.0 0.0.0.0/0 ::/0 fd00::/8 ::1/128 proxy"),
    *words("0.0.0.0/1,128.0.0.0/1 ::/1,8000::/1 ::ffff:0:0/96 ::ffff:10.0.0.1 fe80::1%eth0 10.0.0.1:80"),
)
NUMBERS = (
    *words("0 -0 1 -1 1.0 1.5 1e3 1e400 -1e400 inf -inf nan 0x10 1_000 ٣ 1e-9 x [1]"),
    *(" ", "\udcff", "x" * 5000, "9" * 5000),
    *(str(number) for number in (2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30)),
)
WORDS = ("true", "TRUE", "false", "0", "1", "2", "yes", "no", "on", "off", "y", "x", " ")
PATHS = ("/", "/etc/hostname", "/nonexistent/x", "x/" * 600 + "x", "/" + "x" * 104, "/" + "x" * 300)
DATABASES = (
    *words("postgresql://u:p@h:5432/n postgresql://h:0/n postgresql://h:99999/n postgresql://h:x/n mysql://h/n"),
    *words("sqlite:// sqlite:///x.db sqlite:///:memory: postgres://h/n postgresql://"),
)
# More values for settings whose type alone suggests too few, by the name of the setting.
BY_NAME: dict[str, Iterable[str]] = {
    "allowed_hosts": HOSTS,
    "cors_origins": (*ORIGINS, "*", "null", ","),
    "forwarded_allow_ips": (*PROXIES, "*", ","),
    "database_url": DATABASES,
    "email_from": ("a@example.com", "a@bücher.example", "a@localhost", "A <a@example.com>", "a@example.com\nBcc: b@c"),
    "api_prefix": words("/api /api/ api /a/../b /. /.. /a//b /{x} /a?b /%61 /..."),
    "worker_class": words("uvicorn_worker.UvicornWorker asgi sync gevent uvicorn.workers.UvicornWorker os.path"),
    "web_language": words("en xx EN ../en en.toml"),
    "storage_s3_bucket": ("files", "a..b", "Files", "ab", "a" * 64),
}
# Other variables that a setting requires.
BUCKET = ("STORAGE_S3_BUCKET", "files")
NEEDED = {
    "database_host": [("DATABASE_NAME", "x")],
    "storage_s3_endpoint": [BUCKET],
    "storage_s3_access_key_id": [BUCKET, ("STORAGE_S3_SECRET_ACCESS_KEY", "x")],
    "storage_s3_secret_access_key": [BUCKET, ("STORAGE_S3_ACCESS_KEY_ID", "x")],
}
TEXT_NAMES = re.compile(r"_(user|name|region|id)\Z")
# Settings that restrict requests: the service may refuse a request, but must never answer with a server error.
GUARDS = {
    *("access_token_lifetime_seconds", "allowed_hosts", "email_verification_required", "max_body_bytes"),
    *("max_concurrent_requests", "max_rows_per_user", "refresh_token_lifetime_seconds", "registration_open"),
    *(name for name in FIELDS if name.startswith("throttle_")),
}
# Settings that affect the start or the choice of the database; separate tests cover these effects.
ELSEWHERE = {
    *("environment", "purge_interval_seconds", "reset_db", "update_db", "secret_key", "throttling"),
    *(name for name in FIELDS if name.startswith("database_")),
}
# The maximum cost of hashing a password in these tests.
PATIENCE = {"password_hash_memory_cost": 64 * 1024, "password_hash_time_cost": 10}
ROUNDS = 3
GROUPS = [tuple(FIELDS)[start::12] for start in range(12)]


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a temporary folder, so that relative paths, such as in EMAIL_FOLDER, are not in the project."""
    monkeypatch.chdir(tmp_path)


def kinds_of(field: FieldInfo) -> set[Any]:
    """Return the types that a setting accepts, without None and without their annotations."""
    options = [*get_args(field.annotation)] if NoneType in get_args(field.annotation) else [field.annotation]
    kinds = set()
    for option in options:
        bare = getattr(option, "__origin__", option) if hasattr(option, "__metadata__") else option
        kinds.add(get_origin(bare) or bare)
    return kinds - {NoneType}


def list_values(name: str, field: FieldInfo) -> tuple[str, ...]:
    """Return the values to try; fails for a setting of an unknown type, for which values must be added here."""
    values = [*BY_NAME.get(name, ())]
    for kind in kinds_of(field):
        if kind in (int, float):
            values += [*NUMBERS, *_bounds(field, kind)]
        elif kind is bool:
            values += WORDS
        elif kind is Literal:
            values += [*WORDS, *map(str, get_args(field.annotation))]
        elif isinstance(kind, type) and issubclass(kind, Enum):
            values += [*WORDS, *(str(option.value) for option in kind)]
        elif kind is Path:
            values += [*TEXTS, *PATHS]
        elif kind is SecretStr or name == "secret_key_fallbacks":
            values += [*TEXTS, SECRET, "p@ss:w/rd?#[]%20", "a,b", '["a", "b"]', "[1, 2]"]
        elif kind is str and name.endswith("host"):
            values += [*TEXTS, *HOSTS]
        elif kind is str and name.endswith(("url", "endpoint")):
            values += [*TEXTS, *ORIGINS]
        else:
            known = name in BY_NAME or (kind is str and TEXT_NAMES.search(name))
            assert known, f"{name} is of a new kind: give it values in this module"
            values += TEXTS
    return tuple(dict.fromkeys(values))


def _bounds(field: FieldInfo, kind: type) -> Iterator[str]:
    """Yield the two bounds of a number, and the numbers next to each bound; a missing bound is an error."""
    bounds = {
        bound: getattr(each, bound) for each in _constraints(field) for bound in ("ge", "le") if hasattr(each, bound)
    }
    assert bounds.keys() == {"ge", "le"}, "a number needs a lower and an upper bound"
    for bound in bounds.values():
        yield from (str(kind(bound)), str(kind(bound) - 1), str(kind(bound) + 1))


def _constraints(field: FieldInfo) -> Iterator[Any]:
    for each in (*field.metadata, *(item for option in get_args(field.annotation) for item in metadata_of(option))):
        yield from each.metadata if isinstance(each, FieldInfo) else (each,)


def metadata_of(option: object) -> tuple[Any, ...]:
    metadata: tuple[Any, ...] = getattr(option, "__metadata__", ())
    return metadata


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in env_names(*KINDS):
        monkeypatch.delenv(name, raising=False)
    for kind in KINDS:
        monkeypatch.setitem(kind.model_config, "env_file", None)
    monkeypatch.setattr("app.core.config.load.SECRETS_DIR", tmp_path / "secrets")
    monkeypatch.setattr("app.core.config.database_url.DRIVER_MODULES", {"postgresql": "json", "sqlite": "json"})


def list_accepted(name: str) -> list[Any]:
    """Load the configuration with each value of a setting; return the parsed accepted values, numbers sorted."""
    accepted: dict[str, Any] = {}
    for value in list_values(name, FIELDS[name]):
        with pytest.MonkeyPatch.context() as patch:
            for known, good in (BASE | {name.upper(): value}).items():
                patch.setenv(known, good)
            for needed in NEEDED.get(name, ()):
                patch.setenv(*needed)
            if name in {"database_host", "database_name"}:
                patch.delenv("DATABASE_URL")
            try:
                settings = load_settings([kind for kind in SETTINGS if name in kind.model_fields])
            except ConfigurationError as error:
                check_refusal(str(error), value)
            else:
                taken = read(settings, name)
                accepted[repr(taken)] = taken
    values = [*accepted.values()]
    return sorted(values) if all(isinstance(value, int | float) for value in values) else values


def read(settings: Settings, name: str) -> Any:  # noqa: ANN401  # of the setting's own type
    owners = [settings, *(settings.of(kind) for kind in SETTINGS)]
    return next(getattr(owner, name) for owner in owners if name in type(owner).model_fields)


def check_refusal(message: str, value: str) -> None:
    for line in message.splitlines()[1:]:
        name, colon, sentence = line.strip().partition(": ")
        assert colon, line
        assert re.fullmatch(r"[A-Z][A-Z0-9_]*", name), line
        assert len(sentence.split()) >= 3, f"{line} says nothing of what to write"
        assert "pattern" not in sentence, f"{line} is for programs"
        assert len(value) < 20 or value not in sentence


def check_server(settings: ServerSettings) -> None:
    assert re.fullmatch(r"unix:.+|(\[[^\]]+\]|[^:]+):\d+", bind_address(settings), re.DOTALL)
    assert worker_count(settings) >= 1
    assert logging_config(settings)["root"]["level"] == settings.log_level
    middleware = ProxyHeadersMiddleware(lambda *_: None, trusted_proxies(settings))  # type: ignore[arg-type]  # nothing calls it
    # uvicorn treats text that is not an IP address as the name of a socket.
    assert middleware.trusted_hosts.trusted_literals <= {""}


async def ask(settings: Settings, database: Database | None) -> list[int]:
    """Sign up, sign in and look at the account; return the statuses."""
    host = settings.allowed_hosts[0].removeprefix("*.").replace("*", "localhost")
    prefix = settings.api_prefix
    async with open_client(create_app(settings, database), base_url=f"https://{host}") as client:
        form = {"grant_type": "password", "username": f"{uuid4().hex}@example.com", "password": PASSWORD}
        created = await client.post(f"{prefix}/users", json={"email": form["username"], "password": PASSWORD})
        signed_in = await client.post(f"{prefix}/auth/token", data=form)
        token = signed_in.json().get("access_token", "")
        origin = settings.cors_origins[0] if settings.cors_origins else "https://example.com"
        seen = await client.get(f"{prefix}/users/me", headers={"Authorization": f"Bearer {token}", "Origin": origin})
        if settings.cors_origins:
            assert seen.headers["access-control-allow-origin"] in {origin, "*"}
        await client.post(f"{prefix}/auth/password/forgot", json={"email": form["username"]})
        return [created.status_code, signed_in.status_code, seen.status_code]


def settle(url: str, values: dict[str, Any]) -> Settings:
    """Make settings from values that are each valid alone, without those that are invalid in combination."""
    while True:
        try:
            return make_settings(url, **values)
        except ValidationError as error:
            wrong = {str(problem["loc"][0]) for problem in error.errors()} & values.keys()
            if not wrong:
                raise
            values = {name: value for name, value in values.items() if name not in wrong}


@pytest.mark.parametrize("names", GROUPS, ids="-".join)
async def test_each_setting_value_is_refused_with_message_or_works(
    migrated_url: str, database: Database, names: Sequence[str]
) -> None:
    accepted = {name: list_accepted(name) for name in names}

    assert all(accepted.values())
    for name in ServerSettings.model_fields.keys() & accepted.keys():
        for value in accepted[name]:
            check_server(ServerSettings(_env_file=None, **{name: value}))
    usual = {
        name: [value for value in values if name not in PATIENCE or value <= PATIENCE[name]]
        for name, values in accepted.items()
        if name not in GUARDS | ELSEWHERE
    }
    for number in range(ROUNDS):
        # The first round takes the first value of each setting, and the last round takes the last one; for a number,
        # these are its bounds.
        chosen = {name: values[number * (len(values) - 1) // (ROUNDS - 1)] for name, values in usual.items()}
        assert await ask(settle(migrated_url, chosen), database) == [201, 200, 200], chosen


@pytest.mark.parametrize("name", sorted(GUARDS))
async def test_restrictive_settings_cause_no_server_error(migrated_url: str, database: Database, name: str) -> None:
    accepted = list_accepted(name)

    for value in (accepted[0], accepted[-1]):
        statuses = await ask(make_settings(migrated_url, throttling=True, **{name: value}), database)
        assert max(statuses) < 500, value


@pytest.mark.parametrize("choose", [min, max])
async def test_database_works_with_minimum_and_maximum_settings(live_url: str, choose: Callable[..., Any]) -> None:
    names = [name for name in ELSEWHERE if kinds_of(FIELDS[name]) <= {int, float} and not name.endswith("port")]
    values = {name: choose(list_accepted(name)) for name in names}
    # The minimum timeouts are too short for any response of a database.
    if choose is min:
        values = {name: value for name, value in values.items() if not name.endswith("timeout_seconds")}

    assert await ask(make_settings(live_url, **values), None) == [201, 200, 200]
