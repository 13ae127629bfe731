"""Add, list and remove the passkeys of an account."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.exc import IntegrityError

from app.accounts.emails import AccountChange, notify_owner
from app.accounts.events import AccountEvent
from app.accounts.identity_cache import require_session
from app.accounts.models import Caller, Passkey
from app.accounts.passkeys.schemas import PasskeyCreate, PasskeyCreated, PasskeyRead
from app.accounts.queries import lock_user
from app.accounts.second_factor.codes import find_factors, make_recovery_codes
from app.accounts.second_factor.confirmation import confirm_identity
from app.accounts.second_factor.passkeys import (
    INVALID_SIGNATURE,
    REFUSALS,
    Purpose,
    encode,
    make_challenge,
    use_challenge,
)
from app.accounts.second_factor.schemas import PasswordConfirmation
from app.accounts.second_factor.service import delete_unneeded_recovery_codes
from app.core.context import Context
from app.core.db.query import Query, columns
from app.core.db.session import Session, commit_and_release
from app.core.errors import ConflictError, NotFoundError, UnprocessableError
from app.core.security import webauthn
from app.core.security.webauthn import InvalidPasskeyError, JsonObject, Person, Registration

# Enough for all devices of a person. Without a limit, the WebAuthn options for a new passkey could become large,
# because they list all existing passkeys.
MAX_PASSKEYS = 20


class PasskeyRecord(NamedTuple):
    id: UUID
    name: str
    created_at: datetime
    last_used_at: datetime | None


COLUMNS = columns(PasskeyRecord, Passkey)
_PASSKEYS = select(*COLUMNS).where(Passkey.user_id == bindparam("owner_id")).order_by(Passkey.created_at, Passkey.id)
PASSKEYS = Query(_PASSKEYS, PasskeyRecord)
PASSKEY_BY_ID = Query(_PASSKEYS.where(Passkey.id == bindparam("passkey_id")), PasskeyRecord)
CREDENTIAL_IDS = Query(select(Passkey.credential_id).where(Passkey.user_id == bindparam("owner_id")))
CREATE_PASSKEY = Query(insert(Passkey).returning(*COLUMNS), PasskeyRecord)
DELETE_PASSKEY = Query(delete(Passkey).where(Passkey.id == bindparam("passkey_id")).returning(Passkey.id))


async def list_passkeys(session: Session, user_id: UUID) -> list[PasskeyRecord]:
    return await session.fetch_all(PASSKEYS, owner_id=user_id)


async def get_passkey(session: Session, user_id: UUID, passkey_id: UUID) -> PasskeyRecord:
    """Return a passkey of the user. Raises NotFoundError, also for a passkey of another user."""
    passkey = await session.fetch_one_or_none(PASSKEY_BY_ID, owner_id=user_id, passkey_id=passkey_id)
    if passkey is None:
        raise NotFoundError("Passkey not found.", code="passkey-not-found")
    return passkey


async def begin(ctx: Context, caller: Caller, data: PasswordConfirmation) -> JsonObject:
    """Return the options with which a browser creates a passkey for this session."""
    user = caller.user
    await confirm_identity(ctx, caller, data)
    known = await _list_ids(ctx.session, user.id)
    challenge = await make_challenge(ctx.session, Purpose.ADD, user.id, bound_to=str(caller.session_id))
    await commit_and_release(ctx.session)
    person = Person(user.id.bytes, user.email, user.name)
    return await webauthn.make_creation_options(ctx.settings, challenge, person, known)


async def create(ctx: Context, caller: Caller, data: PasskeyCreate) -> PasskeyCreated:
    """Add a passkey. Returns recovery codes as well if the account had no second factor before.

    Raises UnprocessableError if the passkey is invalid, and ConflictError if the passkey is already registered or the
    account already has MAX_PASSKEYS.
    """
    user, sent = caller.user, data.credential
    challenge = await use_challenge(ctx.session, Purpose.ADD, sent.response.client_data, str(caller.session_id))
    # The challenge is used up, whatever happens next.
    await commit_and_release(ctx.session)
    registration = Registration(sent.id, sent.response.client_data, sent.response.attestation)
    try:
        new = await webauthn.verify_registration(ctx.settings, challenge, registration)
    except InvalidPasskeyError as error:
        raise UnprocessableError(REFUSALS[INVALID_SIGNATURE], code=INVALID_SIGNATURE) from error
    await lock_user(ctx.session, user.id)
    await require_session(ctx.session, caller)
    # Check the limit again, now that the user is locked.
    await _list_ids(ctx.session, user.id)
    is_first = await find_factors(ctx.session, user.id) is None
    try:
        passkey = await ctx.session.fetch_one(
            CREATE_PASSKEY,
            user_id=user.id,
            name=data.name,
            credential_id=encode(new.credential_id),
            public_key=encode(new.public_key),
            sign_count=new.sign_count,
            transports=sent.response.transports,
        )
    except IntegrityError as error:
        raise ConflictError(
            "This passkey is already registered. Create another passkey instead.", code="passkey-taken"
        ) from error
    codes = await make_recovery_codes(ctx.session, user.id) if is_first else []
    await ctx.audit.record(AccountEvent.PASSKEY_ADDED, user.id, actor_id=user.id, passkey_id=str(passkey.id))
    await notify_owner(ctx, user.id, AccountChange.PASSKEY_ADDED)
    return PasskeyCreated(passkey=PasskeyRead.model_validate(passkey), recovery_codes=codes)


async def _list_ids(session: Session, user_id: UUID) -> list[str]:
    """Return the credential IDs of the user's passkeys. Raises ConflictError if there are MAX_PASSKEYS already."""
    ids = [credential_id for (credential_id,) in await session.fetch_all(CREDENTIAL_IDS, owner_id=user_id)]
    if len(ids) >= MAX_PASSKEYS:
        raise ConflictError(
            f"An account can have at most {MAX_PASSKEYS} passkeys. Remove one first.", code="too-many-passkeys"
        )
    return ids


async def remove(ctx: Context, caller: Caller, passkey: PasskeyRecord, data: PasswordConfirmation) -> None:
    user = caller.user
    await confirm_identity(ctx, caller, data)
    await lock_user(ctx.session, user.id)
    if await ctx.session.fetch_value(DELETE_PASSKEY, passkey_id=passkey.id) is None:
        raise NotFoundError("Passkey not found.", code="passkey-not-found")
    await delete_unneeded_recovery_codes(ctx.session, user.id)
    await ctx.audit.record(AccountEvent.PASSKEY_REMOVED, user.id, actor_id=user.id, passkey_id=str(passkey.id))
    await notify_owner(ctx, user.id, AccountChange.PASSKEY_REMOVED)
