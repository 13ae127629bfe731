from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.models import Base, IdMixin, TimestampMixin


class User(TimestampMixin, Base):
    __tablename__ = "users"
    # What a page of all accounts is read from.
    __table_args__ = (Index(None, "created_at", "id"),)

    # Lower-case; RFC 5321 allows 254 characters.
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
    # What its tokens may be used for, as RFC 6749 §3.3 writes it.
    scope: Mapped[str] = mapped_column(String(200))
    address: Mapped[str | None] = mapped_column(String(45))
    device: Mapped[str] = mapped_column(String(200))
    last_used_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class OneTimeToken(Base):
    """Proves that the person who presents it reads the mail of an address; the row is deleted once it is used."""

    __tablename__ = "one_time_tokens"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    purpose: Mapped[str] = mapped_column(String(50))
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    address: Mapped[str] = mapped_column(String(254))
    payload: Mapped[dict[str, JsonValue]] = mapped_column(JSON, default=dict)
    expires_at: Mapped[datetime]


class RefreshToken(IdMixin, Base):
    """One link in a session's chain: used once, and kept afterwards to recognise a stolen copy."""

    __tablename__ = "refresh_tokens"

    session_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), index=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    used_at: Mapped[datetime | None]


class KnownNetwork(Base):
    """Where an account has signed in from, or was reset: attempts from elsewhere never keep it out there.

    No cookie for known devices: it would be a further supply of guesses unless it expired and were revoked with the
    password.
    """

    __tablename__ = "known_networks"
    # Also searched without the account: whether any account knows the network.
    __table_args__ = (Index(None, "network"),)

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    network: Mapped[str] = mapped_column(String(64), primary_key=True)
    last_used_at: Mapped[datetime]


class SecondFactor(Base):
    """An authenticator app (TOTP, RFC 6238); asked for once it was confirmed."""

    __tablename__ = "second_factors"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    # Encrypted: a copy of the database alone is no second factor.
    secret: Mapped[str] = mapped_column(String(255))
    confirmed_at: Mapped[datetime | None]
    # The time step of the last code that was taken: none is taken twice.
    last_step: Mapped[int] = mapped_column(Integer, default=0)


class SecondFactorFailures(Base):
    """How often in a row the password was right, and what was asked for besides was wrong or missing.

    A separate row: concurrent sign-ins share a lock on the user's row, so none of them can change it.
    """

    __tablename__ = "second_factor_failures"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    failures: Mapped[int]


class RecoveryCode(Base):
    """Replaces the authenticator when it is lost; each code works once."""

    __tablename__ = "recovery_codes"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    code_hash: Mapped[str] = mapped_column(String(64), primary_key=True)


class Passkey(IdMixin, Base):
    """A key pair of WebAuthn: its owner signs in with it alone, or beside the password."""

    __tablename__ = "passkeys"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    # Both in base64url; WebAuthn allows ids of 1023 bytes.
    credential_id: Mapped[str] = mapped_column(String(1364), unique=True)
    public_key: Mapped[str] = mapped_column(String(1400))
    # 32 bits without a sign; 0 where the authenticator does not count.
    sign_count: Mapped[int] = mapped_column(BigInteger)
    # How browsers reach the authenticator, such as `usb` and `internal`.
    transports: Mapped[list[str]] = mapped_column(JSON)
    last_used_at: Mapped[datetime | None]


class UserRecord(NamedTuple):
    """What the service reads of a user."""

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
