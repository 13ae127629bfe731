from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from app.core.config.load import env_names
from tests.support.config import ALL_SETTINGS, PetSettings


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove all settings from the environment, so that only the defaults apply."""
    for name in env_names(*ALL_SETTINGS):
        monkeypatch.delenv(name, raising=False)
    kinds: tuple[type[BaseSettings], ...] = (*ALL_SETTINGS, PetSettings)
    for kind in kinds:
        monkeypatch.setitem(kind.model_config, "env_file", None)
    monkeypatch.setattr("app.core.config.load.SECRETS_DIR", tmp_path / "secrets")
    # Only one driver is installed, but the rules of both databases are tested: `json` stands in for both drivers.
    monkeypatch.setattr("app.core.config.database_url.DRIVER_MODULES", {"postgresql": "json", "sqlite": "json"})
