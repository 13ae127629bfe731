"""Reading of settings from the environment, `.env` and files of secrets, and the report of problems."""

import errno
import os
from pathlib import Path

import pytest

from app.core.config.load import ConfigurationError, load_settings
from app.core.config.settings import Settings
from tests.support.config import GOOD_SECRET, PRODUCTION, SQLITE, PetSettings, load, refuse

pytestmark = pytest.mark.usefixtures("clean_environment")


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
        # Simulate a missing permission: the tests may run as root, who may read every file.
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
