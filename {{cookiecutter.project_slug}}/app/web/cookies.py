"""Signed cookies."""

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from app.core.config.settings import Settings
from app.web.signing import SignedValue, Signer


class Cookies:
    """Reads the signed cookies of a request, and collects the cookies to set on its response."""

    def __init__(self, request: Request[Any], settings: Settings, signer: Signer) -> None:
        # Browsers send Secure cookies only over TLS, which development may lack.
        self._is_secure = settings.environment.is_deployed or request.url.scheme == "https"
        self._received = request.cookies
        self._signer = signer
        # The signed value and the max-age of each cookie to set, by its name.
        self._changes: dict[str, tuple[str, int]] = {}

    def read(self, name: str) -> SignedValue | None:
        """Return a cookie's value, or None if it is missing or was not signed by this service under this name."""
        return self._signer.verify(_purpose(name), self._received.get(self._full_name(name), ""))

    def set(self, name: str, value: str, max_age: int) -> None:
        self._changes[name] = (self._signer.sign(_purpose(name), value), max_age)

    def delete(self, name: str) -> None:
        self._changes[name] = ("", 0)

    def apply_to(self, response: Response) -> Response:
        for name, (value, max_age) in self._changes.items():
            response.set_cookie(
                self._full_name(name), value, max_age, secure=self._is_secure, httponly=True, samesite="lax"
            )
        return response

    def _full_name(self, name: str) -> str:
        """Return the name with the prefix __Host-, if cookies are Secure.

        Browsers accept this prefix only from this host over TLS, so that other subdomains cannot set these cookies.
        """
        return f"__Host-{name}" if self._is_secure else name


def _purpose(name: str) -> str:
    return f"cookie {name}"
