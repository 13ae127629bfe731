"""Settings that would make a deployed service unsafe."""

import re

import pytest
from pydantic import SecretStr

from app.core.project import ROOT
from tests.support.config import PRODUCTION, SQLITE, load, refuse

pytestmark = pytest.mark.usefixtures("clean_environment")


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


def test_password_hashing_beyond_available_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"PASSWORD_HASH_MEMORY_COST": str(4 * 1024**2), "PASSWORD_HASH_CONCURRENCY": "1000"}

    assert refuse(monkeypatch, **PRODUCTION, **costs) == [
        "PASSWORD_HASH_CONCURRENCY: needs more memory than is available: each of the 1000 hashes takes"
        " PASSWORD_HASH_MEMORY_COST KiB; lower one of the two settings"
    ]


def test_cors_credentials_with_wildcard_origin_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    local = {"SECRET_KEY": "local", "DATABASE_URL": SQLITE, "CORS_ORIGINS": "*"}

    assert load(monkeypatch, **local).cors_origins == ("*",)
    assert refuse(monkeypatch, **local, CORS_ALLOW_CREDENTIALS="true")


def test_trusting_every_proxy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refuse(monkeypatch, **PRODUCTION, FORWARDED_ALLOW_IPS="*")
