import re
from pathlib import Path

from pydantic import Field, field_validator

from app.core.config.base import FeatureSettings
from app.web.i18n import ENGLISH, LOCALES, Translations

LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")


class WebSettings(FeatureSettings, title="Pages"):
    web_language: str = Field(
        default="en",
        description="Language of the pages: the name of a file in `app/web/locales`. Missing texts fall back to"
        " English, and `python -m app check` lists them.",
    )

    @field_validator("web_language")
    @classmethod
    def require_texts(cls, value: str) -> str:
        if not LANGUAGE.fullmatch(value) or not _locale(value).exists():
            raise ValueError("must be the name of a file in app/web/locales without .toml, such as en")
        try:
            Translations(ENGLISH)
        except (OSError, ValueError) as error:
            raise ValueError(f"needs the English texts in app/web/locales/en.toml: {error}") from error
        return value

    @property
    def locale(self) -> Path:
        return _locale(self.web_language)

    @property
    def notes(self) -> list[str]:
        gaps = Translations(self.locale).gaps
        file = f"app/web/locales/{self.locale.name}"
        return [f"{file} has errors, so the pages show some texts in English: {'; '.join(gaps)}"] if gaps else []


def _locale(language: str) -> Path:
    return LOCALES / f"{language}.toml"
