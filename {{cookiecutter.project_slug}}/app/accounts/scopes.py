"""What an access token may be used for (RFC 6749 §3.3)."""

from enum import StrEnum


class Scope(StrEnum):
    ACCOUNT = "account"
    ADMIN = "admin"


# As the documentation shows them.
SCOPES = {
    Scope.ACCOUNT: "Act as the account: read and change what belongs to it.",
    Scope.ADMIN: "Manage all accounts; granted to administrators alone.",
}


def parse_scope(text: str) -> frozenset[str]:
    return frozenset(text.split())


def format_scope(scopes: frozenset[str]) -> str:
    return " ".join(sorted(scopes))


def list_allowed(*, is_admin: bool) -> frozenset[str]:
    return frozenset(Scope) if is_admin else frozenset({Scope.ACCOUNT})
