import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.core.config.settings import Settings


@dataclass(frozen=True)
class Signed:
    text: str
    # Good for as long as that key is kept, and to be signed anew before it goes.
    by_predecessor: bool


class Signer:
    """Sign what browsers keep; each purpose by itself, so that nothing passes for something else."""

    def __init__(self, settings: Settings) -> None:
        secret_keys = (settings.secret_key, *settings.secret_key_fallbacks)
        self._keys = [_derive_key(key.get_secret_value()) for key in secret_keys]

    def sign(self, purpose: str, text: str) -> str:
        return f"{text}.{_digest(self._keys[0], purpose, text)}"

    def read(self, purpose: str, signed: str) -> Signed | None:
        """Return what was signed, or None when none of the keys has signed it for this purpose."""
        text, _, digest = signed.rpartition(".")
        presented = digest.encode("utf-8", "surrogatepass")
        expected = [_digest(key, purpose, text).encode() for key in self._keys]
        matches = [hmac.compare_digest(each, presented) for each in expected]
        return Signed(text, by_predecessor=not matches[0]) if any(matches) else None


def _derive_key(secret_key: str) -> bytes:
    """From a key of its own, so that what signs cookies signs no token."""
    return HKDF(hashes.SHA256(), length=32, salt=None, info=b"signed cookies").derive(secret_key.encode())


def _digest(key: bytes, purpose: str, text: str) -> str:
    return hmac.new(key, f"{purpose}\0{text}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
