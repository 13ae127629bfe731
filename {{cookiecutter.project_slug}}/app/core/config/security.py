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
        description="Previous values of `SECRET_KEY`. The service still accepts tokens and cookies that they signed,"
        " and decrypts secrets that they encrypted, so that a rotation of `SECRET_KEY` signs nobody out.",
    )
    # The defaults are OWASP's first recommendation for Argon2id.
    password_hash_time_cost: int = Field(
        default=2,
        ge=1,
        le=100,
        description="Number of iterations of Argon2id. After a change of an Argon2id parameter (time cost, memory cost"
        " or parallelism), each password is hashed again at its next sign-in.",
    )
    password_hash_memory_cost: int = Field(
        default=19 * 1024,
        ge=MIN_LANE_MEMORY,
        le=4 * 1024**2,
        description="Memory that Argon2id takes for each hash, in KiB.",
    )
    password_hash_parallelism: int = Field(
        default=1, ge=1, le=64, description="Number of lanes of Argon2id, which compute one hash in parallel."
    )
    password_hash_concurrency: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Maximum number of passwords that each worker hashes at once. A request beyond the maximum waits in"
        " the queue (`PASSWORD_HASH_QUEUE`).",
    )
    password_hash_queue: Count | None = Field(
        default=None,
        description="Maximum number of requests that wait for a hash in each worker. A request beyond the maximum gets"
        " a 503, and does not count as an attempt to sign in. Unset: a quarter of `MAX_CONCURRENT_REQUESTS`.",
    )
    breached_passwords_url: WebUrl | None = Field(
        default=None,
        description="Service that tells whether a new password is known from a data breach; such passwords are refused."
        " Set `https://api.pwnedpasswords.com/range` or a mirror, which receives only the first five digits of the"
        " password's SHA-1 hash. A password that cannot be checked within 2 s is accepted, with a warning in the log."
        " Unset: no check.",
    )

    @field_validator("secret_key")
    @classmethod
    def refuse_weak_secret(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        weakness = _find_weakness(value, deployed=is_deployed(info))
        if weakness:
            raise ValueError(f"{weakness}: generate a key with `openssl rand -hex 32`")
        return value

    @field_validator("secret_key_fallbacks")
    @classmethod
    def refuse_weak_fallbacks(cls, value: tuple[SecretStr, ...], info: ValidationInfo) -> tuple[SecretStr, ...]:
        for secret in value:
            weakness = _find_weakness(secret, deployed=is_deployed(info))
            if weakness:
                raise ValueError(f"contains a key that {weakness}: remove this key")
        return value

    @field_validator("password_hash_parallelism")
    @classmethod
    def check_lanes(cls, value: int, info: ValidationInfo) -> int:
        memory = info.data.get("password_hash_memory_cost")
        if memory is not None and memory < MIN_LANE_MEMORY * value:
            raise ValueError(
                f"needs a PASSWORD_HASH_MEMORY_COST of at least {MIN_LANE_MEMORY * value} (KiB): raise that"
                " setting, or lower PASSWORD_HASH_PARALLELISM"
            )
        return value

    @field_validator("password_hash_concurrency")
    @classmethod
    def check_memory(cls, value: int, info: ValidationInfo) -> int:
        memory, usable = info.data.get("password_hash_memory_cost"), usable_memory()
        if memory is not None and usable is not None and memory * 1024 * value > usable:
            raise ValueError(
                f"needs more memory than is available: each of the {value} hashes takes PASSWORD_HASH_MEMORY_COST KiB;"
                " lower one of the two settings"
            )
        return value


def _find_weakness(value: SecretStr, *, deployed: bool) -> str | None:
    """Return the reason why a key is refused; None if it is accepted."""
    secret = value.get_secret_value()
    if not secret:
        return "is empty"
    if not deployed:
        return None
    if len(secret.encode()) < MIN_SECRET_BYTES:
        return f"has fewer than {MIN_SECRET_BYTES} bytes"
    if len(set(secret)) < MIN_SECRET_CHARACTERS:
        return f"has fewer than {MIN_SECRET_CHARACTERS} different characters"
    return "looks like a placeholder" if PLACEHOLDER_SECRET.search(secret) else None
