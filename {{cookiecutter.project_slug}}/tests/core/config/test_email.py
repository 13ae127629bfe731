import pytest

from tests.support.config import PRODUCTION, load, refuse

pytestmark = pytest.mark.usefixtures("clean_environment")


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
