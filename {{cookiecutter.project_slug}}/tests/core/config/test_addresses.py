"""Addresses that are normalized, and invalid values that are refused."""

import pytest

from tests.support.config import PRODUCTION, load, refuse

pytestmark = pytest.mark.usefixtures("clean_environment")


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
