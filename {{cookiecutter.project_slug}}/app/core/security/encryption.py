"""Encryption at rest of secrets that the service must decrypt, such as those of authenticator apps."""

import base64

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.core.config.settings import Settings


class SecretBox:
    """Encrypts with a key derived from SECRET_KEY; also decrypts with the keys of SECRET_KEY_FALLBACKS."""

    def __init__(self, settings: Settings) -> None:
        secret_keys = (settings.secret_key, *settings.secret_key_fallbacks)
        self._ciphers = MultiFernet([_derive_cipher(key.get_secret_value()) for key in secret_keys])

    def encrypt(self, secret: str) -> str:
        return self._ciphers.encrypt(secret.encode()).decode()

    def decrypt(self, encrypted: str) -> str:
        """Return the secret; raises KeyError if it was encrypted with another key."""
        try:
            return self._ciphers.decrypt(encrypted).decode()
        except InvalidToken as error:
            raise KeyError(
                "The secret was encrypted with an earlier SECRET_KEY: add that key to SECRET_KEY_FALLBACKS."
            ) from error


def _derive_cipher(secret_key: str) -> Fernet:
    """Derive a separate key: the same key must not be used for both encryption and signatures."""
    key = HKDF(hashes.SHA256(), length=32, salt=None, info=b"encryption at rest").derive(secret_key.encode())
    return Fernet(base64.urlsafe_b64encode(key))
