"""Verify passkeys (WebAuthn). Each response needs a challenge, which is valid for five minutes and one use."""

import base64
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, NamedTuple
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema
from pydantic_core import from_json
from sqlalchemy import BigInteger, bindparam, select, update

from app.accounts import one_time_tokens
from app.accounts.emails import EmailKind
from app.accounts.events import AccountEvent
from app.accounts.models import Passkey, User
from app.core.context import Context
from app.core.db.models import utc_now
from app.core.db.query import Query, columns
from app.core.db.session import Session, commit_and_release
from app.core.errors import UnprocessableError
from app.core.security import webauthn
from app.core.security.throttling import AttemptCounter, client_counters
from app.core.security.webauthn import Assertion, InvalidPasskeyError, JsonObject
from app.outbox import service as outbox_service

CHALLENGE_LIFETIME = timedelta(minutes=5)
MAX_PART_LENGTH = 8192
BASE64URL = "^[A-Za-z0-9_-]+$"

# Error codes of refused passkeys.
INVALID_CHALLENGE = "invalid-challenge"
UNKNOWN_PASSKEY = "unknown-passkey"
INVALID_SIGNATURE = "invalid-passkey-signature"
INACTIVE_ACCOUNT = "inactive-account"
COPIED_PASSKEY = "copied-passkey"
REFUSALS = {
    INVALID_CHALLENGE: (
        "Invalid challenge of the passkey: it was used, has expired, or belongs to another session. Start again with"
        " new passkey options."
    ),
    UNKNOWN_PASSKEY: "No account has this passkey. Use another passkey, or another way to sign in.",
    INVALID_SIGNATURE: "Invalid passkey signature. Try again, or use another passkey.",
    INACTIVE_ACCOUNT: (
        "The account is deactivated, or its e-mail address is not verified. Verify the address, or contact the"
        " operators of this service."
    ),
    COPIED_PASSKEY: (
        "The passkey may have been copied: its counter did not increase. Sign in another way, and remove this passkey"
        " from your account."
    ),
}


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _read_part(value: object) -> bytes:
    if not isinstance(value, str) or len(value) > MAX_PART_LENGTH:
        raise ValueError(f"must be base64url of at most {MAX_PART_LENGTH} characters")
    try:
        return decode(value)
    except ValueError:
        raise ValueError("must be base64url") from None


Part = Annotated[
    bytes,
    BeforeValidator(_read_part),
    WithJsonSchema({"type": "string", "pattern": BASE64URL, "maxLength": MAX_PART_LENGTH}),
]


class AssertionResponse(BaseModel):
    client_data: Annotated[Part, Field(alias="clientDataJSON")]
    authenticator_data: Annotated[Part, Field(alias="authenticatorData")]
    signature: Part


class PasskeyAssertion(BaseModel):
    """The result of `navigator.credentials.get` as JSON; other fields are ignored."""

    id: Part
    response: AssertionResponse


def read_text(value: object) -> object:
    """Parse JSON, which forms send as text."""
    return from_json(value) if isinstance(value, str) else value


SentAssertion = Annotated[PasskeyAssertion, BeforeValidator(read_text)]


class _ClientData(BaseModel):
    challenge: Annotated[str, Field(max_length=100)]


class Purpose(StrEnum):
    ADD = "add passkey"
    USE = "use passkey"


class PasskeyRecord(NamedTuple):
    id: UUID
    user_id: UUID
    public_key: str
    email: str


class PasskeyRefusedError(UnprocessableError):
    """A refused passkey. Counters and audit events of the attempt are committed."""

    def __init__(self, code: str) -> None:
        super().__init__(REFUSALS[code], code=code, commit_anyway=True)


HAS_PASSKEY = Query(select(Passkey.id).where(Passkey.user_id == bindparam("owner_id")).limit(1))
PASSKEY = Query(
    select(*columns(PasskeyRecord, Passkey, email=User.email))
    .join(User, User.id == Passkey.user_id)
    .where(Passkey.credential_id == bindparam("presented_id")),
    PasskeyRecord,
)
_NEW_COUNT = bindparam("new_count", type_=BigInteger)
# Updates no row unless the signature counter has grown: a counter that has not grown indicates a copied passkey. Many
# authenticators do not count and always send 0, so 0 is accepted while the stored count is 0. Atomic: of two concurrent
# requests with the same count, only one gets the row.
USE_PASSKEY = Query(
    update(Passkey)
    .where(
        Passkey.id == bindparam("used_id"),
        (Passkey.sign_count < _NEW_COUNT) | ((Passkey.sign_count == 0) & (_NEW_COUNT == 0)),
    )
    .values(sign_count=_NEW_COUNT, last_used_at=bindparam("now"))
    .returning(Passkey.id)
)


async def has_passkey(session: Session, user_id: UUID) -> bool:
    return await session.fetch_value(HAS_PASSKEY, owner_id=user_id) is not None


async def make_challenge(
    session: Session, purpose: Purpose, user_id: UUID | None = None, *, bound_to: str = ""
) -> bytes:
    """Return a new challenge. If `bound_to` is the ID of a session or browser, no other one can use the challenge."""
    challenge = await one_time_tokens.create_token(
        session, purpose, user_id, "", lifetime=CHALLENGE_LIFETIME, payload={"bound_to": bound_to}
    )
    return decode(challenge)


async def use_challenge(session: Session, purpose: Purpose, client_data: bytes, *bound_to: str) -> bytes:
    """Use up and return the challenge in the client data. The response must then be verified against this challenge.

    Raises PasskeyRefusedError if the challenge is invalid, or is bound to none of `bound_to`.
    """
    try:
        challenge = _ClientData.model_validate_json(client_data).challenge
        found = await one_time_tokens.use_token(session, challenge, purpose)
        if found.payload["bound_to"] in bound_to:
            return decode(challenge)
    except (ValidationError, UnprocessableError) as error:
        raise PasskeyRefusedError(INVALID_CHALLENGE) from error
    raise PasskeyRefusedError(INVALID_CHALLENGE)


async def make_options(ctx: Context, *, bound_to: str = "") -> JsonObject:
    """Return the options with which a browser asks for any passkey of this service. Raises TooManyRequestsError."""
    await ctx.throttle.commit_and_take(ctx.session, *_counters(ctx))
    challenge = await make_challenge(ctx.session, Purpose.USE, bound_to=bound_to)
    await commit_and_release(ctx.session)
    return await webauthn.make_request_options(ctx.settings, challenge)


def _counters(ctx: Context) -> list[AttemptCounter]:
    """Return the counters of challenges. They limit attempts, since each attempt needs one. A success is refunded."""
    return client_counters("passkey from address", ctx.client.ip_address, ctx.settings)


async def use_passkey(ctx: Context, sent: PasskeyAssertion, *bound_to: str) -> PasskeyRecord:
    """Return the passkey of a valid response. Raises PasskeyRefusedError.

    The challenge must be bound to one of `bound_to`; without `bound_to`, the challenge must not be bound.
    """
    response = sent.response
    challenge = await use_challenge(ctx.session, Purpose.USE, response.client_data, *(bound_to or ("",)))
    passkey = await ctx.session.fetch_one_or_none(PASSKEY, presented_id=encode(sent.id))
    if passkey is None:
        raise PasskeyRefusedError(UNKNOWN_PASSKEY)
    assertion = Assertion(sent.id, response.client_data, response.authenticator_data, response.signature)
    try:
        count = await webauthn.verify_assertion(ctx.settings, challenge, assertion, decode(passkey.public_key))
    except InvalidPasskeyError as error:
        raise PasskeyRefusedError(INVALID_SIGNATURE) from error
    if await ctx.session.fetch_value(USE_PASSKEY, used_id=passkey.id, new_count=count, now=utc_now()) is None:
        raise await _refuse_copy(ctx, sent)
    for counter in _counters(ctx):
        await ctx.throttle.refund(ctx.session, counter)
    return passkey


async def _refuse_copy(ctx: Context, sent: PasskeyAssertion) -> PasskeyRefusedError:
    """Record the copied passkey, notify its owner, and return the error to raise.

    If the passkey was removed meanwhile, nothing is recorded and nobody is notified.
    """
    passkey = await ctx.session.fetch_one_or_none(PASSKEY, presented_id=encode(sent.id))
    if passkey is None:
        return PasskeyRefusedError(UNKNOWN_PASSKEY)
    await ctx.audit.record(AccountEvent.PASSKEY_COPIED, passkey.user_id, passkey_id=str(passkey.id))
    if ctx.settings.sends_mail:
        await outbox_service.notify(ctx, EmailKind.PASSKEY_COPIED, passkey.email, passkey.user_id)
    return PasskeyRefusedError(COPIED_PASSKEY)
