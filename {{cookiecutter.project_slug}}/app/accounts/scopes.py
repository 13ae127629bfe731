"""Scopes of access tokens (RFC 6749 §3.3)."""

from enum import StrEnum


class Scope(StrEnum):
    ACCOUNT = "account"
    ADMIN = "admin"


# Descriptions for the OpenAPI document.
SCOPES = {
    Scope.ACCOUNT: "Read and change the account and its data.",
    Scope.ADMIN: "Manage all accounts; for administrators only.",
}


def parse_scope(text: str) -> frozenset[str]:
    return frozenset(text.split())


def format_scope(scopes: frozenset[str]) -> str:
    return " ".join(sorted(scopes))


def list_allowed(*, is_admin: bool) -> frozenset[str]:
    return frozenset(Scope) if is_admin else frozenset({Scope.ACCOUNT})
