from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.models import Base, IdMixin, TimestampMixin


class User(TimestampMixin, Base):
    __tablename__ = "users"
    # For the paginated list of all accounts.
    __table_args__ = (Index(None, "created_at", "id"),)

    # Lower-case; at most 254 characters (RFC 5321).
    email: Mapped[str] = mapped_column(String(254), unique=True)
    name: Mapped[str] = mapped_column(String(200), default="")
    password_hash: Mapped[str] = mapped_column(String(255))
    is_active: Mapped[bool] = mapped_column(default=True)
    is_admin: Mapped[bool] = mapped_column(default=False)
    email_verified_at: Mapped[datetime | None]


class UserSession(IdMixin, Base):
    """A sign-in; its tokens work for as long as this row exists and has not expired."""

    __tablename__ = "sessions"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    # Space-separated (RFC 6749 §3.3).
    scope: Mapped[str] = mapped_column(String(200))
    address: Mapped[str | None] = mapped_column(String(45))
    device: Mapped[str] = mapped_column(String(200))
    last_used_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class OneTimeToken(Base):
    """A code from an e-mail, a confirmation code, or a passkey challenge; deleted when it is used."""

    __tablename__ = "one_time_tokens"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    purpose: Mapped[str] = mapped_column(String(50))
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    address: Mapped[str] = mapped_column(String(254))
    payload: Mapped[dict[str, JsonValue]] = mapped_column(JSON, default=dict)
    expires_at: Mapped[datetime]


class RefreshToken(IdMixin, Base):
    """A refresh token of a session: used once, and kept afterwards to detect a stolen copy."""

    __tablename__ = "refresh_tokens"

    session_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), index=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    used_at: Mapped[datetime | None]


class KnownNetwork(Base):
    """A network that an account has signed in from, or reset its password from.

    Failed attempts from other networks never lock the owner out on this network. A cookie for a known device would be
    an alternative, but the holder of a copied cookie could keep guessing the password: the cookie would have to expire,
    and a new password would have to revoke it.
    """

    __tablename__ = "known_networks"
    # For the query that asks whether any account has signed in from the network.
    __table_args__ = (Index(None, "network"),)

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    network: Mapped[str] = mapped_column(String(64), primary_key=True)
    last_used_at: Mapped[datetime]


class SecondFactor(Base):
    """An authenticator app (TOTP, RFC 6238); required at sign-in once it is confirmed."""

    __tablename__ = "second_factors"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    # Encrypted, so that a copy of the database does not suffice to make codes.
    secret: Mapped[str] = mapped_column(String(255))
    confirmed_at: Mapped[datetime | None]
    # The time step of the last accepted code, so that no code is accepted twice.
    last_step: Mapped[int] = mapped_column(Integer, default=0)


class SecondFactorFailures(Base):
    """Counts consecutive sign-ins and confirmations with a correct password, but an incorrect or missing second factor.

    A separate table, since concurrent sign-ins hold a shared lock on the user's row, and would deadlock if they also
    updated the user's row.
    """

    __tablename__ = "second_factor_failures"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    failures: Mapped[int]


class RecoveryCode(Base):
    """A code that replaces a lost second factor; it works once."""

    __tablename__ = "recovery_codes"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    code_hash: Mapped[str] = mapped_column(String(64), primary_key=True)


class Passkey(IdMixin, Base):
    """A WebAuthn key: for sign-in without a password, or as a second factor."""

    __tablename__ = "passkeys"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    # `credential_id` and `public_key` are base64url; credential IDs have at most 1023 bytes.
    credential_id: Mapped[str] = mapped_column(String(1364), unique=True)
    public_key: Mapped[str] = mapped_column(String(1400))
    # The signature counter, an unsigned integer of 32 bits; 0 if the authenticator has no counter.
    sign_count: Mapped[int] = mapped_column(BigInteger)
    # Ways to reach the authenticator, such as `usb` and `internal`.
    transports: Mapped[list[str]] = mapped_column(JSON)
    last_used_at: Mapped[datetime | None]


class UserRecord(NamedTuple):
    """All columns of a user except the hash of the password."""

    id: UUID
    email: str
    name: str
    is_active: bool
    is_admin: bool
    email_verified_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Caller(NamedTuple):
    """A signed-in user, and the session of the token or cookie."""

    user: UserRecord
    session_id: UUID
