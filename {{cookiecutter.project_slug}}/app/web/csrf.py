"""Tokens against cross-site request forgery, bound to a session or, before the sign-in, to a browser."""

import secrets

from app.web.signing import Signer


def create_csrf_token(signer: Signer, bound_to: str) -> str:
    """Return a token that differs in each response: compression could reveal a constant token (BREACH attack)."""
    return signer.sign(_purpose(bound_to), secrets.token_urlsafe(8))


def is_csrf_token(signer: Signer, bound_to: str, token: str) -> bool:
    return signer.verify(_purpose(bound_to), token) is not None


def _purpose(bound_to: str) -> str:
    return f"csrf token of {bound_to}"
