from pathlib import Path

from pydantic import Field, field_validator

from app.core.config import FeatureSettings

LOCALES = Path(__file__).with_name("locales")


class WebSettings(FeatureSettings):
    web_language: str = Field(default="en", pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")

    @field_validator("web_language")
    @classmethod
    def require_texts(cls, value: str) -> str:
        if not _locale(value).exists():
            raise ValueError("must name a file of app/web/locales")
        return value

    @property
    def locale(self) -> Path:
        return _locale(self.web_language)


def _locale(language: str) -> Path:
    return LOCALES / f"{language}.toml"
