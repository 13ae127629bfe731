"""Functions that load settings from the environment, and the settings of an invented feature."""

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from app.core.config.base import FeatureSettings
from app.core.config.load import ConfigurationError, load_settings
from app.core.config.settings import Settings
from app.features import SETTINGS

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


def load(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def refuse(monkeypatch: pytest.MonkeyPatch, **values: str) -> list[str]:
    """Load settings that must be refused, and return the reported problems, one per line."""
    with pytest.raises(ConfigurationError) as refusal:
        load(monkeypatch, **values)
    return [line.strip() for line in str(refusal.value).splitlines()[1:]]
