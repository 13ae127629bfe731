import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsError

from app.core.config.base import Configuration, FeatureSettings
from app.core.config.settings import Settings

SECRETS_DIR = Path("/run/secrets")
# If a worker exits with this code, uvicorn and gunicorn stop the service instead of starting another worker.
EXIT_CANNOT_START = 3

ConfigurationT = TypeVar("ConfigurationT", bound=Configuration)


class ConfigurationError(Exception):
    """An invalid configuration; the message has one line for each problem and no rejected value."""


def load_settings(of_features: Sequence[type[FeatureSettings]] = ()) -> Settings:
    """Read the configuration, including that of features.

    Raises ConfigurationError with every problem at once.
    """
    problems: list[str] = []
    settings = _read(Settings, problems)
    others = [_read(kind, problems) for kind in of_features]
    if settings is None or problems:
        raise ConfigurationError("The configuration is invalid:\n" + "\n".join(problems))
    return settings.join(*(other for other in others if other is not None))


def load_settings_or_exit(of_features: Sequence[type[FeatureSettings]] = ()) -> Settings:
    """Read the configuration; print every problem and exit if it is invalid."""
    try:
        return load_settings(of_features)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EXIT_CANNOT_START) from None


def env_names(*kinds: type[BaseSettings]) -> list[str]:
    return [name.upper() for kind in kinds or (Settings,) for name in kind.model_fields]


def _read(kind: type[ConfigurationT], problems: list[str]) -> ConfigurationT | None:
    try:
        return kind(_secrets_dir=SECRETS_DIR if SECRETS_DIR.is_dir() else None)
    except ValidationError as error:
        errors = error.errors(include_input=False)
        problems += [f"  {_env_name(problem['loc'])}: {_explain(problem)}" for problem in errors]
    except (SettingsError, UnicodeDecodeError, OSError) as error:
        problem = f"  {_explain_source(error)}"
        # Report a problem of a source once: every class of settings reads the same sources.
        if problem not in problems:
            problems.append(problem)
    return None


def _env_name(location: tuple[int | str, ...]) -> str:
    return str(location[0]).upper() if location else "settings"


def _explain(problem: ErrorDetails) -> str:
    if problem["type"] == "missing":
        return "must be set"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _explain_source(error: Exception) -> str:
    source, cause = (str(error), error.__cause__) if isinstance(error, SettingsError) else (".env", error)
    if isinstance(cause, UnicodeDecodeError):
        # The message of a UnicodeDecodeError quotes a byte of the file, which may be part of a secret.
        return f"{source}: must be UTF-8"
    return f"{source}: {cause.strerror}" if isinstance(cause, OSError) else source
