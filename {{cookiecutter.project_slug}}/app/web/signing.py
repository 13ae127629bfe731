"""Signed values for browsers."""

import hashlib
from dataclasses import dataclass

from itsdangerous import BadSignature, TimestampSigner

from app.core.config.settings import Settings


@dataclass(frozen=True)
class SignedValue:
    value: str
    # Unix time.
    signed_at: float
    # The value must be signed again before the old key is removed from SECRET_KEY_FALLBACKS.
    signed_with_old_key: bool


class Signer:
    """Signs with SECRET_KEY; also verifies values signed with SECRET_KEY_FALLBACKS.

    Each purpose has a separate key, so that a value signed for one purpose is invalid for every other purpose.
    """

    def __init__(self, settings: Settings) -> None:
        keys = (settings.secret_key, *settings.secret_key_fallbacks)
        # Oldest first, as itsdangerous wants them.
        self._keys = [key.get_secret_value() for key in reversed(keys)]

    def sign(self, purpose: str, value: str) -> str:
        return _signer(self._keys, purpose).sign(value.encode()).decode()

    def verify(self, purpose: str, signed: str) -> SignedValue | None:
        """Return the value, or None if none of the keys has signed it for this purpose."""
        # Text of a client may hold surrogates, which UTF-8 cannot encode.
        data = signed.encode("utf-8", "surrogatepass")
        try:
            # Pass no max_age: with it, itsdangerous refuses values from the future, and the clocks of two hosts differ.
            value, signed_at = _signer(self._keys, purpose).unsign(data, return_timestamp=True)
        except BadSignature:
            return None
        is_old = not _signer(self._keys[-1:], purpose).validate(data)
        return SignedValue(value.decode(), signed_at.timestamp(), signed_with_old_key=is_old)


def _signer(keys: list[str], purpose: str) -> TimestampSigner:
    # Set the digest, because the default is SHA-1. "hmac" derives a key for each purpose, which also differs from the
    # key of access tokens.
    return TimestampSigner(keys, salt=purpose, key_derivation="hmac", digest_method=hashlib.sha256)
