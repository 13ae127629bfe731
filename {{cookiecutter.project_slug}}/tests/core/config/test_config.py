import errno
import os
import re
from pathlib import Path

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings
from sqlalchemy import make_url

from app.core.config.base import FeatureSettings
from app.core.config.load import ConfigurationError, env_names, load_settings
from app.core.config.settings import Settings
from app.core.project import ROOT
from app.features import SETTINGS
from scripts.document_settings import render_documents
from tests.support.databases import make_settings

GOOD_SECRET = "Zx81mQ0pLr7tVb3nHy6kWd9sJf2gCa5e"
SQLITE = "sqlite:////tmp/unused.sqlite3"
ALL_SETTINGS: tuple[type[BaseSettings], ...] = (Settings, *SETTINGS)
PRODUCTION = {
    "ENVIRONMENT": "production",
    "SECRET_KEY": GOOD_SECRET,
    "DATABASE_URL": SQLITE,
    "ALLOWED_HOSTS": "example.com",
}


class PetSettings(FeatureSettings):
    pet_shop_key: SecretStr
    pet_limit: int = Field(default=3, ge=0, le=100, description="Number of pets.")
    pet_names: list[str] = Field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        return [f"{self.pet_limit} pets at most"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in env_names(*ALL_SETTINGS):
        monkeypatch.delenv(name, raising=False)
    kinds: tuple[type[BaseSettings], ...] = (*ALL_SETTINGS, PetSettings)
    for kind in kinds:
        monkeypatch.setitem(kind.model_config, "env_file", None)
    monkeypatch.setattr("app.core.config.load.SECRETS_DIR", tmp_path / "secrets")
    # The rules are those of both databases; only one driver is installed.
    monkeypatch.setattr("app.core.config.database_url.DRIVER_MODULES", {"postgresql": "json", "sqlite": "json"})


def load(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def refuse(monkeypatch: pytest.MonkeyPatch, **values: str) -> list[str]:
    """Return the problems, one line each."""
    with pytest.raises(ConfigurationError) as refusal:
        load(monkeypatch, **values)
    return [line.strip() for line in str(refusal.value).splitlines()[1:]]


def test_minimal_production_environment_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, **PRODUCTION)

    assert settings.serves_docs is False
    assert settings.log_format == "json"


def test_every_problem_is_named_at_once_and_no_value_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = refuse(
        monkeypatch,
        ENVIRONMENT="production",
        SECRET_KEY="hunter2",
        DATABASE_URL="mysql://user:hunter2@host/name",
        ALLOWED_HOSTS="*",
        CORS_ORIGINS="*",
        CORS_ALLOW_CREDENTIALS="true",
        RESET_DB="1",
        PORT="hunter2",
    )

    names = [problem.partition(":")[0] for problem in problems]
    assert sorted(names) == [
        "ALLOWED_HOSTS",
        "CORS_ALLOW_CREDENTIALS",
        "DATABASE_URL",
        "PORT",
        "RESET_DB",
        "SECRET_KEY",
    ]
    assert "hunter2" not in " ".join(problems)


def test_empty_environment_reports_required_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = refuse(monkeypatch)

    assert [problem.partition(":")[0] for problem in problems] == ["SECRET_KEY", "DATABASE_NAME"]


@pytest.mark.parametrize(
    "secret",
    [
        "short",
        "x" * 32,
        "abcdefg" * 10,
        "Zx81mQ0pLr7tVb3nHy6kWd9sChangeMe",
        "my-secret-Zx81mQ0pLr7tVb3nHy6kWd9",
        "your-key-Zx81mQ0pLr7tVb3nHy6kWd9s",
        "EXAMPLE-Zx81mQ0pLr7tVb3nHy6kWd9sJ",
        "replace-me-with-at-least-32-random-characters",
    ],
)
@pytest.mark.parametrize("environment", ["staging", "production"])
@pytest.mark.parametrize("name", ["SECRET_KEY", "SECRET_KEY_FALLBACKS"])
def test_weak_secret_is_refused_in_staging_and_production(
    monkeypatch: pytest.MonkeyPatch, environment: str, name: str, secret: str
) -> None:
    problems = refuse(monkeypatch, **{**PRODUCTION, "ENVIRONMENT": environment, name: secret})

    assert [problem.partition(":")[0] for problem in problems] == [name]


def test_weak_secret_is_accepted_locally(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, SECRET_KEY="local", DATABASE_URL=SQLITE).secret_key == SecretStr("local")


def test_the_secret_of_the_example_is_refused_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search("(?m)^SECRET_KEY=(.*)$", (ROOT / ".env.example").read_text())
    assert example is not None

    assert refuse(monkeypatch, **{**PRODUCTION, "SECRET_KEY": example[1]})


@pytest.mark.parametrize("hosts", ["*", "localhost", "localhost, 127.0.0.1", "a*b.example.com", ""])
def test_unsafe_allowed_hosts_are_refused_in_production(monkeypatch: pytest.MonkeyPatch, hosts: str) -> None:
    assert refuse(monkeypatch, **{**PRODUCTION, "ALLOWED_HOSTS": hosts})


@pytest.mark.parametrize(
    ("name", "text", "meant"),
    [
        ("ALLOWED_HOSTS", "EXAMPLE.com., *.Example.com", ("example.com", "*.example.com")),
        ("ALLOWED_HOSTS", "bücher.example, straße.example", ("xn--bcher-kva.example", "xn--strae-oqa.example")),
        ("ALLOWED_HOSTS", "::1, [0:0:0:0:0:0:0:2]", ("[::1]", "[::2]")),
        ("CORS_ORIGINS", "HTTPS://Example.com/", ("https://example.com",)),
        ("CORS_ORIGINS", "https://a.example:443, http://a.example:80", ("https://a.example", "http://a.example")),
        ("CORS_ORIGINS", "https://a.example:80, http://[::1]:3000", ("https://a.example:80", "http://[::1]:3000")),
        ("CORS_ORIGINS", "https://bücher.example", ("https://xn--bcher-kva.example",)),
        ("CORS_ORIGINS", "capacitor://localhost", ("capacitor://localhost",)),
        ("FORWARDED_ALLOW_IPS", "10.0.0.0/255.0.0.0, 192.0.2.1/32", ("10.0.0.0/8", "192.0.2.1")),
        ("SMTP_HOST", "Mail.Bücher.example", "mail.xn--bcher-kva.example"),
        ("HOST", "[::1]", "::1"),
        ("DATABASE_POOLER_HOST", "/run/pgbouncer", "/run/pgbouncer"),
    ],
)
def test_addresses_are_normalized(monkeypatch: pytest.MonkeyPatch, name: str, text: str, meant: object) -> None:
    settings = load(monkeypatch, **{**PRODUCTION, "EMAIL_FROM": "a@example.com", name: text})

    assert getattr(settings, name.lower()) == meant


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("ALLOWED_HOSTS", text) for text in ("https://example.com", "example.com:443", "example.com/x", "1.2.3.4.5")),
        *(("CORS_ORIGINS", text) for text in ("example.com", "https://*.example.com", "https://example.com/x", "null")),
        *(("FORWARDED_ALLOW_IPS", text) for text in ("10.0.0.5/8", "10.0.0.0/33", "proxy", "0.0.0.0/0", "::/0")),
        *(("FORWARDED_ALLOW_IPS", text) for text in ("0.0.0.0/1,128.0.0.0/1", "::ffff:0:0/96")),
        ("SMTP_HOST", "mail.example.com:587"),
        ("WORKER_CLASS", "sync"),
        ("HOST", "http://127.0.0.1"),
        ("DATABASE_OWNER_HOST", "db:5432"),
        ("DATABASE_POOLER_HOST", "db:6432"),
        ("PASSWORD_HASH_PARALLELISM", "64"),
        ("PASSWORD_HASH_TIME_COST", str(2**32)),
        ("PASSWORD_HASH_MEMORY_COST", str(2**32)),
        ("ACCESS_TOKEN_LIFETIME_SECONDS", str(10**12)),
        ("REFRESH_TOKEN_LIFETIME_SECONDS", str(10**9)),
        ("AUTH_CACHE_SECONDS", "inf"),
        ("API_PREFIX", "/api/.."),
        ("PUBLIC_URL", "https://[::1"),
    ],
)
def test_invalid_values_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    problems = refuse(monkeypatch, **{**PRODUCTION, "PASSWORD_HASH_MEMORY_COST": "256", name: text})

    assert [problem.partition(":")[0] for problem in problems] == [name]


def test_password_hashing_beyond_available_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"PASSWORD_HASH_MEMORY_COST": str(4 * 1024**2), "PASSWORD_HASH_CONCURRENCY": "1000"}

    assert refuse(monkeypatch, **PRODUCTION, **costs) == [
        "PASSWORD_HASH_CONCURRENCY: times PASSWORD_HASH_MEMORY_COST exceeds the available memory: lower one of them"
    ]


def test_cors_credentials_with_wildcard_origin_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    local = {"SECRET_KEY": "local", "DATABASE_URL": SQLITE, "CORS_ORIGINS": "*"}

    assert load(monkeypatch, **local).cors_origins == ("*",)
    assert refuse(monkeypatch, **local, CORS_ALLOW_CREDENTIALS="true")


def test_trusting_every_proxy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refuse(monkeypatch, **PRODUCTION, FORWARDED_ALLOW_IPS="*")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("EMAIL_FROM", {"SMTP_HOST": "mail.example.com"}),
        ("EMAIL_VERIFICATION_REQUIRED", {"EMAIL_VERIFICATION_REQUIRED": "true"}),
        (
            "SMTP_SECURITY",
            {
                "SMTP_HOST": "mail.example.com",
                "SMTP_PASSWORD": "hunter2",
                "SMTP_SECURITY": "none",
                "EMAIL_FROM": "a@example.com",
            },
        ),
        ("EMAIL_FROM", {"EMAIL_FROM": "=?utf-8?q?us?=@example.com"}),
        ("EMAIL_FROM", {"EMAIL_FROM": "jürgen@example.com"}),
        ("EMAIL_FROM", {"EMAIL_FROM": "us@exa mple.com"}),
        ("PUBLIC_URL", {"PUBLIC_URL": "example.com"}),
        ("PUBLIC_URL", {"PUBLIC_URL": "https://example.com:99999"}),
        ("PUBLIC_URL", {"PUBLIC_URL": "https://xn--\u0661b.example"}),
        ("PUBLIC_URL", {"PUBLIC_URL": "https://hunter2@example.com"}),
        ("ACCOUNT_PAGES_URL", {"ACCOUNT_PAGES_URL": "https://example.com/#x"}),
    ],
)
def test_invalid_mail_settings_are_refused_in_production(
    monkeypatch: pytest.MonkeyPatch, name: str, values: dict[str, str]
) -> None:
    problems = refuse(monkeypatch, **PRODUCTION, **values)

    assert [problem.partition(":")[0] for problem in problems] == [name]
    assert "hunter2" not in problems[0]


def test_production_without_mail_server_starts_with_note(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, **PRODUCTION)

    assert not settings.sends_mail
    assert "SMTP_HOST is not set" in settings.notes[0]


@pytest.mark.parametrize(
    ("values", "url", "sender"),
    [
        ({}, "https://example.com", "no-reply@example.com"),
        ({"ALLOWED_HOSTS": "*.example.com, b.example.com"}, "https://example.com", "no-reply@example.com"),
        (
            {"PUBLIC_URL": "https://api.example.com:8443/x/"},
            "https://api.example.com:8443/x",
            "no-reply@api.example.com",
        ),
        ({"EMAIL_FROM": "us@example.org"}, "https://example.com", "us@example.org"),
        ({"EMAIL_FROM": "us@bücher.example.org"}, "https://example.com", "us@xn--bcher-kva.example.org"),
        (
            {"PUBLIC_URL": "https://BÜCHER.example/straße"},
            "https://xn--bcher-kva.example/stra%C3%9Fe",
            "no-reply@xn--bcher-kva.example",
        ),
    ],
)
def test_service_url_and_mail_sender_are_derived_from_settings(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], url: str, sender: str
) -> None:
    settings = load(monkeypatch, **{**PRODUCTION, **values})

    assert (settings.service_url, settings.sender) == (url, sender)


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        (GOOD_SECRET, [GOOD_SECRET]),
        (f" {GOOD_SECRET} , {GOOD_SECRET}2 ,", [GOOD_SECRET, f"{GOOD_SECRET}2"]),
        (f'["{GOOD_SECRET}", "b,{GOOD_SECRET}"]', [GOOD_SECRET, f"b,{GOOD_SECRET}"]),
    ],
)
def test_list_is_read_from_commas_or_json_array(monkeypatch: pytest.MonkeyPatch, text: str, secrets: list[str]) -> None:
    read = load(monkeypatch, **PRODUCTION, SECRET_KEY_FALLBACKS=text).secret_key_fallbacks

    assert [secret.get_secret_value() for secret in read] == secrets


def test_a_broken_json_array_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refuse(monkeypatch, **{**PRODUCTION, "ALLOWED_HOSTS": '["a'})


def test_secrets_are_read_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "secret_key").write_text(GOOD_SECRET + "\n")

    settings = load(monkeypatch, ENVIRONMENT="production", DATABASE_URL=SQLITE, ALLOWED_HOSTS="example.com")

    assert settings.secret_key.get_secret_value() == GOOD_SECRET


@pytest.mark.parametrize("secret", ["a${HOME}b-${NONE}-$HOME-$$", "${SECRET_KEY}", "${NONE:-x}", "#${x}!`id`$(id)"])
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_secret_in_env_file_is_not_expanded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secret: str, quote: str
) -> None:
    file = tmp_path / ".env"
    file.write_text(f"DATABASE_URL={SQLITE}\nSECRET_KEY={quote}{secret}{quote}\nPET_SHOP_KEY={quote}{secret}{quote}\n")
    for kind in (Settings, PetSettings):
        monkeypatch.setitem(kind.model_config, "env_file", file)

    settings = load_settings([PetSettings])

    assert settings.secret_key.get_secret_value() == secret
    assert settings.of(PetSettings).pet_shop_key.get_secret_value() == secret


def test_environment_overrides_env_file_and_empty_value_is_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / ".env"
    file.write_text(f"database_url={SQLITE}\nSECRET_KEY=local\nPORT=1\nSMTP_HOST=\nSMTP_USER\n")
    monkeypatch.setitem(Settings.model_config, "env_file", file)

    settings = load(monkeypatch, PORT="2")

    assert (settings.port, settings.smtp_host, settings.smtp_user) == (2, None, None)


UNREADABLE_SECRET = 'error getting value for field "secret_key" from source "SecretsSettingsSource"'


@pytest.mark.parametrize(("name", "source"), [(".env", ".env"), ("secrets/secret_key", UNREADABLE_SECRET)])
def test_file_that_is_not_utf8_is_reported_in_one_line_without_its_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, source: str
) -> None:
    for kind in (Settings, PetSettings):
        monkeypatch.setitem(kind.model_config, "env_file", tmp_path / ".env")
    (tmp_path / "secrets").mkdir()
    (tmp_path / name).write_bytes(b"SECRET_KEY=hunter2\xff")

    with pytest.raises(ConfigurationError) as refusal:
        load_settings([PetSettings])

    lines = str(refusal.value).splitlines()
    assert [line for line in lines if "UTF-8" in line] == [f"  {source}: must be UTF-8"]
    assert "hunter2" not in str(refusal.value)
    assert "xff" not in str(refusal.value)


def test_unreadable_secret_file_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "secret_key").touch()

    def refuse_to_read(file: Path, **_: object) -> str:
        # As to an account that may not; the tests may run as one that may everything.
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))

    monkeypatch.setattr(Path, "read_text", refuse_to_read)

    assert refuse(monkeypatch) == [f"{UNREADABLE_SECRET}: {os.strerror(errno.EACCES)}"]


def test_invalid_json_is_reported_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_NAMES", "hunter2")
    for name, value in {**PRODUCTION, "PET_SHOP_KEY": "x"}.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError, match="pet_names") as refusal:
        load_settings([PetSettings])

    assert len(str(refusal.value).splitlines()) == 2
    assert "hunter2" not in str(refusal.value)


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
        "or write the path of a file (SQLite)"
    ]


def test_database_url_overrides_its_parts_with_note(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, SECRET_KEY="local", DATABASE_URL=SQLITE, DATABASE_HOST="host", DATABASE_NAME="x")

    assert str(settings.url).startswith("sqlite")
    assert "ignored" in settings.notes[0]


def test_a_feature_has_settings_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "pet_shop_key").write_text("from a file")
    monkeypatch.setenv("PET_LIMIT", "5")
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)

    settings = load_settings([PetSettings])

    assert settings.of(PetSettings).pet_shop_key.get_secret_value() == "from a file"
    assert "5 pets at most" in settings.notes
    assert Settings(**settings.model_dump()).of(PetSettings).pet_limit == 3


def test_production_has_no_default_folder_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    local = load(monkeypatch, SECRET_KEY=GOOD_SECRET, DATABASE_URL=SQLITE)
    deployed = load(monkeypatch, **PRODUCTION)
    with_folder = load(monkeypatch, STORAGE_FOLDER="/var/lib/files")

    assert local.files_folder == ROOT / "data" / "files"
    assert deployed.files_folder is None
    assert "STORAGE_FOLDER is not set" in " ".join(deployed.notes)
    assert with_folder.files_folder == Path("/var/lib/files")
    assert "STORAGE" not in " ".join([*local.notes, *with_folder.notes])


def test_relative_storage_folder_is_inside_project_and_refused_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, SECRET_KEY=GOOD_SECRET, DATABASE_URL=SQLITE, STORAGE_FOLDER="files")

    assert settings.files_folder == ROOT / "files"
    assert refuse(monkeypatch, **PRODUCTION) == [
        "STORAGE_FOLDER: must be an absolute path: a folder inside a release is deleted together with it"
    ]


def test_storage_bucket_overrides_storage_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, **PRODUCTION, STORAGE_FOLDER="/files", STORAGE_S3_BUCKET="files")

    assert settings.stores_files
    assert settings.notes[-1] == "STORAGE_S3_BUCKET is set: STORAGE_FOLDER is ignored"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"BUCKET": "My_Files"}, "STORAGE_S3_BUCKET: must have 3 to 63 lower-case letters, digits, dots and hyphens"),
        ({"ENDPOINT": "http://127.0.0.1:9000"}, "STORAGE_S3_ENDPOINT: has no effect without a bucket"),
        ({"ACCESS_KEY_ID": "x"}, "STORAGE_S3_ACCESS_KEY_ID: has no effect without a bucket"),
        ({"SECRET_ACCESS_KEY": "x"}, "must be set together with STORAGE_S3_ACCESS_KEY_ID"),
        ({"BUCKET": "files", "ACCESS_KEY_ID": "x"}, "must be set together with STORAGE_S3_ACCESS_KEY_ID"),
        ({"BUCKET": "files", "ENDPOINT": "127.0.0.1:9000"}, "STORAGE_S3_ENDPOINT: must be http:// or https://"),
    ],
)
def test_invalid_bucket_settings_are_refused(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], problem: str
) -> None:
    named = {f"STORAGE_S3_{name}": value for name, value in values.items()}

    problems = refuse(monkeypatch, **PRODUCTION, **named)

    assert len(problems) == 1
    assert problem in problems[0]


def test_problems_of_feature_settings_are_reported_with_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", SQLITE)
    monkeypatch.setenv("PET_LIMIT", "hunter2")

    with pytest.raises(ConfigurationError) as refusal:
        load_settings([PetSettings])

    names = re.findall("(?m)^  ([A-Z_]+): ", str(refusal.value))
    assert names == ["SECRET_KEY", "PET_SHOP_KEY", "PET_LIMIT"]
    assert "hunter2" not in str(refusal.value)


def test_no_two_features_read_the_same_setting() -> None:
    names = env_names(*ALL_SETTINGS)

    assert [name for name in names if names.count(name) > 1] == [], "give it to one, or prefix it with the feature"


def test_the_documents_of_the_settings_are_up_to_date() -> None:
    for name, text in render_documents().items():
        assert (ROOT / name).read_text() == text, f"{name} is out of date: run `make docs`"


def test_every_setting_has_a_description() -> None:
    fields = [field for kind in ALL_SETTINGS for field in kind.model_fields.items()]

    assert [name for name, field in fields if not (field.description or "").endswith(".")] == []


def test_the_documents_follow_the_settings_of_features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def document(*kinds: type[FeatureSettings]) -> str:
        monkeypatch.setattr("scripts.document_settings.SETTINGS", kinds)
        written = render_documents()
        for name, text in written.items():
            (tmp_path / name).write_text(text)
        return "".join(written.values())

    for name in render_documents():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = (ROOT / name).read_text()
        (tmp_path / name).write_text(text.replace("\n| `PORT` |", "\n| `PET_LIMIT` |\n| `PORT` |"))
    monkeypatch.setattr("scripts.document_settings.ROOT", tmp_path)

    added = document(PetSettings)
    assert "\n## Pet\n\n" in added
    assert "| `PET_LIMIT` | `3` | integer, 0 to 100 | Number of pets. |\n" in added
    assert "| `PET_LIMIT` | `3` | Number of pets. |\n" in added
    assert "\n\n# --- Pet\n# PET_SHOP_KEY=\n# PET_LIMIT=3\n# PET_NAMES=\n" in added
    assert document(PetSettings) == added
    assert "PET_" not in document()


def test_a_misspelt_setting_is_refused_in_tests() -> None:
    with pytest.raises(TypeError, match=r"databse_pool_size.* Did you mean database_pool_size"):
        make_settings(SQLITE, databse_pool_size=1)


def test_a_feature_gets_its_settings_in_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.databases.SETTINGS", (*SETTINGS, PetSettings))

    settings = make_settings(SQLITE, pet_shop_key="x", pet_limit=7, port=1)

    assert (settings.of(PetSettings).pet_limit, settings.port) == (7, 1)


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

    assert problems == [f"DATABASE_URL: must not have {name} in the query: use a service file (PGSERVICEFILE)"]
