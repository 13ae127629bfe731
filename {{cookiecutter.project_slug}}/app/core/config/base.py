"""Common parts of all settings: sources, types and bounds."""

import json
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.core.hosts import check_url, normalize_host
from app.core.project import ROOT

DAY_SECONDS = 24 * 3600
# A day in milliseconds fits into 32 bits, the width of the drivers' timeouts.
MAX_WAIT_SECONDS = DAY_SECONDS
MIN_WAIT_SECONDS = 0.001
# Ten years in seconds fit into 32 bits, the width of a cookie's Max-Age, and into datetime's range.
MAX_LIFETIME_SECONDS = 10 * 365 * DAY_SECONDS
MAX_COUNT = 1_000_000
MAX_PORT = 65535
# File system limits of a name and a path.
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1023


class Environment(StrEnum):
    LOCAL = "local"
    TEST = "test"
    STAGING = "staging"
    PRODUCTION = "production"

    @property
    def is_deployed(self) -> bool:
        return self in {Environment.STAGING, Environment.PRODUCTION}


def _split_list(value: object) -> object:
    """Parse a list: values separated by commas, or a JSON array, whose values may contain commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(
                'begins with [ but is not a JSON array: write ["a", "b"], or the values without brackets, separated by'
                " commas"
            ) from error
    return [item.strip() for item in value.split(",") if item.strip()]


def check_path(path: Path) -> Path:
    """Raise ValueError for a path longer than file systems allow."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES or any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts):
        raise ValueError(
            f"must be a path of at most {MAX_PATH_BYTES} bytes, in which each name has at most {MAX_NAME_BYTES} bytes"
        )
    return path


def check_folder(path: Path) -> Path:
    if os.path.isfile(path):
        raise ValueError("must be a folder, but is the path of a file")
    return check_path(path)


# Types that validate settings, including those of features.
StrList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list)]
SecretList = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_list)]
Host = Annotated[str, AfterValidator(normalize_host), Field(json_schema_extra={"format": "hostname"})]
Url = Annotated[str, AfterValidator(check_url), Field(json_schema_extra={"format": "uri"})]
Folder = Annotated[Path, AfterValidator(check_folder)]
Port = Annotated[int, Field(ge=1, le=MAX_PORT)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
# Durations in seconds: Wait and WholeWait for timeouts, Lifetime for tokens and cookies.
Wait = Annotated[float, Field(ge=MIN_WAIT_SECONDS, le=MAX_WAIT_SECONDS)]
WholeWait = Annotated[int, Field(ge=1, le=MAX_WAIT_SECONDS)]
Lifetime = Annotated[int, Field(ge=1, le=MAX_LIFETIME_SECONDS)]


def read_env_file(file: Path) -> dict[str, str | None]:
    """Return the values of a `.env` literally: `${NAME}` in a password is not expanded."""
    return dotenv_values(file, encoding="utf-8", interpolate=False)


class _DotEnvSource(DotEnvSettingsSource):
    # Overridden, because pydantic-settings has no option to turn interpolation off, and python-dotenv would interpolate
    # even in single quotes.
    def _read_env_file(self, file_path: Path) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in read_env_file(file_path).items() if value}


class Configuration(BaseSettings):
    """Reads the environment, `.env` and the files in /run/secrets; the first source that has a value counts."""

    model_config = SettingsConfigDict(
        env_file=ROOT / ".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        assert isinstance(dotenv_settings, DotEnvSettingsSource)  # noqa: S101  # for the type checker: it has this class
        own = _DotEnvSource(settings_cls, env_file=dotenv_settings.env_file)
        return init_settings, env_settings, own, file_secret_settings


class FeatureSettings(Configuration):
    """Base class of a feature's own settings; read them with `settings.of(MySettings)`."""

    @property
    def notes(self) -> list[str]:
        """Warnings about a valid configuration."""
        return []


# The base classes of `Settings` have field validators and no model validators. Pydantic runs all field validators even
# if one fails, so that a failed start reports every problem. A validator sees the fields that are validated before its
# own.
class GeneralSettings(Configuration):
    environment: Environment = Field(
        default=Environment.LOCAL,
        description="Kind of environment that the service runs in. In `staging` and `production`, the service refuses"
        " to start with values of other settings that are safe only in development.",
    )


def is_deployed(info: ValidationInfo) -> bool:
    # An invalid ENVIRONMENT is missing in `data`: treat it as production, the strictest environment.
    environment: Environment = info.data.get("environment", Environment.PRODUCTION)
    return environment.is_deployed
