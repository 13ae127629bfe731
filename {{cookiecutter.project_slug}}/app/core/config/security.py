import re

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from app.core.addresses import WebUrl
from app.core.cgroups import usable_memory
from app.core.config.base import Count, GeneralSettings, SecretList, is_deployed

PLACEHOLDER_SECRET = re.compile("change|secret|example|password|placeholder|your|replace-me", re.IGNORECASE)
MIN_SECRET_BYTES = 32
MIN_SECRET_CHARACTERS = 8
# Argon2's minimum memory per lane, in KiB.
MIN_LANE_MEMORY = 8


class SecuritySettings(GeneralSettings):
    secret_key: SecretStr = Field(
        description="Key that signs access tokens and cookies and encrypts the secrets of second factors. At least 32"
        " bytes in staging and production, for instance from `openssl rand -hex 32`.",
    )
    secret_key_fallbacks: SecretList = Field(
        default=(),
        description="Previous values of `SECRET_KEY`. They verify and decrypt but never sign, so that a rotation signs"
        " nobody out.",
    )
    # The defaults are OWASP's first recommendation for Argon2id.
    password_hash_time_cost: int = Field(
        default=2,
        ge=1,
        le=100,
        description="Iterations of Argon2id. After a change of an Argon2id parameter, each password is hashed again at"
        " its next sign-in.",
    )
    password_hash_memory_cost: int = Field(
        default=19 * 1024,
        ge=MIN_LANE_MEMORY,
        le=4 * 1024**2,
        description="Memory of Argon2id, in KiB.",
    )
    password_hash_parallelism: int = Field(default=1, ge=1, le=64, description="Lanes of Argon2id.")
    password_hash_concurrency: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Number of passwords that each worker hashes at once.",
    )
    password_hash_queue: Count | None = Field(
        default=None,
        description="Number of requests that may wait for a hash in each worker. A further request gets a 503 and does"
        " not count as an attempt. Unset: a quarter of `MAX_CONCURRENT_REQUESTS`.",
    )
    breached_passwords_url: WebUrl | None = Field(
        default=None,
        description="Service that tells whether a new password is known from a data breach; such passwords are refused."
        " Set `https://api.pwnedpasswords.com/range` or a mirror: it receives five digits of the password's hash. A"
        " password that cannot be checked within 2 s is accepted, with a warning in the log. Unset: no check.",
    )

    @field_validator("secret_key")
    @classmethod
    def refuse_weak_secret(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        _check_secret(value, deployed=is_deployed(info))
        return value

    @field_validator("secret_key_fallbacks")
    @classmethod
    def refuse_weak_fallbacks(cls, value: tuple[SecretStr, ...], info: ValidationInfo) -> tuple[SecretStr, ...]:
        for secret in value:
            _check_secret(secret, deployed=is_deployed(info))
        return value

    @field_validator("password_hash_parallelism")
    @classmethod
    def check_lanes(cls, value: int, info: ValidationInfo) -> int:
        memory = info.data.get("password_hash_memory_cost")
        if memory is not None and memory < MIN_LANE_MEMORY * value:
            raise ValueError(f"needs a PASSWORD_HASH_MEMORY_COST of at least {MIN_LANE_MEMORY * value}")
        return value

    @field_validator("password_hash_concurrency")
    @classmethod
    def check_memory(cls, value: int, info: ValidationInfo) -> int:
        memory, usable = info.data.get("password_hash_memory_cost"), usable_memory()
        if memory is not None and usable is not None and memory * 1024 * value > usable:
            raise ValueError("times PASSWORD_HASH_MEMORY_COST exceeds the available memory: lower one of them")
        return value


def _check_secret(value: SecretStr, *, deployed: bool) -> None:
    secret = value.get_secret_value()
    if not secret:
        raise ValueError("must not be empty")
    if not deployed:
        return
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"must have at least {MIN_SECRET_BYTES} bytes")
    if len(set(secret)) < MIN_SECRET_CHARACTERS:
        raise ValueError(f"must have at least {MIN_SECRET_CHARACTERS} different characters")
    if PLACEHOLDER_SECRET.search(secret):
        raise ValueError("looks like a placeholder: generate a key with `openssl rand -base64 48`")
