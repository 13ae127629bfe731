from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import structlog
from sqlalchemy import bindparam, exists, select, update

from app.accounts.events import AccountEvent
from app.accounts.models import KnownNetwork, User
from app.accounts.queries import remember_network
from app.accounts.scopes import SCOPES, format_scope, list_allowed, parse_scope
from app.accounts.second_factor import codes, passkeys
from app.accounts.second_factor.codes import FactorCheck, Factors, Owner, Proof
from app.accounts.second_factor.confirmation import PASSWORD_HASH
from app.accounts.second_factor.passkeys import INACTIVE_ACCOUNT, INVALID_CHALLENGE, PasskeyRefusedError
from app.accounts.sessions import service as sessions
from app.accounts.sign_in.exceptions import OAuthError
from app.accounts.sign_in.granted_scopes import SCOPE_NOT_ALLOWED, grant_scope, list_allowed_scopes
from app.accounts.sign_in.refresh_tokens import issue, refresh
from app.accounts.sign_in.schemas import PasskeySignIn, TokenForm, TokenRead
from app.core.config.settings import Settings
from app.core.context import Context
from app.core.db.models import utc_now
from app.core.db.query import Query, columns, delete_batch
from app.core.db.session import Session, commit_and_release
from app.core.errors import AppError, ForbiddenError, TooManyRequestsError
from app.core.http.schemas import normalize_email
from app.core.observability.metrics import SIGN_INS
from app.core.security.throttling import AttemptCounter, client_counters, network_of, purge_counts

logger = structlog.get_logger(__name__)

INCORRECT_CREDENTIALS = "Incorrect e-mail address or password."
# One sentence for incorrect credentials and for unverified addresses. Otherwise anyone could sign up with an address,
# sign in with the password they chose, and learn from the error whether the address already had an account.
INCORRECT_OR_UNVERIFIED = "Incorrect e-mail address or password, or the address is not verified."
KNOWN_NETWORK_LIFETIME = timedelta(days=90)


class CredentialsRecord(NamedTuple):
    id: UUID
    password_hash: str
    is_active: bool
    is_admin: bool
    email_verified_at: datetime | None
    is_known_network: bool


class LockedUserRecord(NamedTuple):
    id: UUID
    is_admin: bool
    email_verified_at: datetime | None


IS_KNOWN_TO_ANY = Query(select(exists().where(KnownNetwork.network == bindparam("from_network"))))
_IS_KNOWN_NETWORK = exists().where(KnownNetwork.user_id == User.id, KnownNetwork.network == bindparam("from_network"))
CREDENTIALS = Query(
    select(*columns(CredentialsRecord, User, is_known_network=_IS_KNOWN_NETWORK)).where(
        User.email == bindparam("user_email")
    ),
    CredentialsRecord,
)
# Locks the user, so that neither the password nor `is_active` changes between the check and the new session.
CONFIRM_CREDENTIALS = Query(
    select(User.id)
    .where(User.id == bindparam("user_id"), User.password_hash == bindparam("verified_hash"), User.is_active)
    .with_for_update(read=True)
)
# As CONFIRM_CREDENTIALS, for a sign-in with a passkey.
LOCK_ACTIVE_USER = Query(
    select(*columns(LockedUserRecord, User))
    .where(User.id == bindparam("user_id"), User.is_active)
    .with_for_update(read=True),
    LockedUserRecord,
)
REHASH = Query(
    update(User)
    .where(User.id == bindparam("user_id"), User.password_hash == bindparam("verified_hash"), User.is_active)
    .values(password_hash=bindparam("new_hash"))
    .returning(User.id)
)
PURGE_NETWORKS = delete_batch(KnownNetwork, KnownNetwork.last_used_at <= bindparam("used_before"))


@dataclass(frozen=True)
class Attempt:
    """A counted attempt to sign in."""

    account: AttemptCounter
    # The counters in which this attempt was counted, in lock order: another order could deadlock with other sign-ins.
    taken: list[AttemptCounter]
    # The 429 to raise if authentication fails.
    refusal: TooManyRequestsError | None = None


@dataclass(frozen=True)
class OpenedSession:
    user_id: UUID
    session_id: UUID
    scope: str


async def create_token(ctx: Context, form: TokenForm) -> TokenRead:
    """Serve the grants `password` and `refresh_token`. Raises OAuthError, TooManyRequestsError, UnavailableError."""
    if not parse_scope(form.scope) <= set(SCOPES):
        raise OAuthError("invalid_scope", f"Unknown scope. The scopes are {' and '.join(sorted(SCOPES))}.")
    match form.grant_type:
        case "password":
            return await sign_in(ctx, form)
        case "refresh_token":
            return await refresh(ctx, form)
        case "":
            raise OAuthError(
                "invalid_request", "The parameter grant_type is missing. Send password or refresh_token as its value."
            )
        case _:
            raise OAuthError("unsupported_grant_type", "The value of grant_type must be password or refresh_token.")


async def sign_in(ctx: Context, form: TokenForm) -> TokenRead:
    opened = await open_session(ctx, form)
    return await issue(ctx, opened.user_id, opened.session_id, opened.scope)


async def open_session(ctx: Context, form: TokenForm) -> OpenedSession:
    """Authenticate with password and second factor, and begin a session."""
    if form.username is None or form.password is None:
        raise OAuthError("invalid_request", "The parameters username and password are required.")
    try:
        with ctx.passwords.reserve():
            user_id, scope = await _authenticate(ctx, form, form.username, form.password)
    except TooManyRequestsError:
        SIGN_INS.labels("throttled").inc()
        _log_failure(ctx)
        raise
    return await _begin_session(ctx, user_id, scope)


async def _begin_session(ctx: Context, user_id: UUID, scope: str) -> OpenedSession:
    session_id = await sessions.create_session(ctx.session, ctx.settings, user_id, scope, ctx.client)
    await ctx.audit.record(AccountEvent.SIGNED_IN, user_id, actor_id=user_id, session_id=str(session_id), scope=scope)
    SIGN_INS.labels("success").inc()
    return OpenedSession(user_id, session_id, scope)


async def _authenticate(ctx: Context, form: TokenForm, username: str, password: str) -> tuple[UUID, str]:
    """Return the user and the scope. Time and error do not differ between unknown users and incorrect passwords."""
    email = normalize_email(username)
    network = network_of(ctx.client.ip_address)
    # Query the network before the user: a concurrent sign-in of this user may make the network known between the two
    # queries. In the reverse order, the network would then seem to be known to other users only.
    is_known_to_any = await ctx.session.fetch_value(IS_KNOWN_TO_ANY, from_network=network)
    user = await ctx.session.fetch_one_or_none(CREDENTIALS, user_email=email, from_network=network)
    attempt = await _take_attempt(ctx, email, user, network, is_known_to_any=bool(is_known_to_any))
    is_refused = user is None or (attempt.refusal is not None and not user.is_known_network)
    check = await ctx.passwords.verify(password, None if user is None or is_refused else user.password_hash)
    if user is None or not check.is_correct or not await _recheck_under_lock(ctx, user, password, check.new_hash):
        raise await _record_failure(ctx, user, attempt, "password")
    owner, factors = Owner(user.id, email), await codes.find_factors(ctx.session, user.id)
    # Choose the scope first: checking the second factor uses up its code, and a refused scope must not cost the user a
    # code.
    scope = await _choose_scope(ctx, user, owner, factors, attempt, form.scope)
    if factors is not None:
        await _check_second_factor(ctx, user, owner, factors, attempt, Proof(form.otp, form.passkey))
    await remember_network(ctx, user.id)
    await _reset_counters(ctx, attempt)
    return user.id, scope


async def _recheck_under_lock(ctx: Context, user: CredentialsRecord, password: str, new_hash: str | None) -> bool:
    if ctx.settings.email_verification_required and user.email_verified_at is None:
        return False
    verified: str | None = user.password_hash
    if new_hash is not None:
        rehashed = await ctx.session.fetch_value(REHASH, user_id=user.id, verified_hash=verified, new_hash=new_hash)
        if rehashed is not None:
            return True
        # Another sign-in has re-hashed the password meanwhile, or it was changed.
        verified = await ctx.session.fetch_value(PASSWORD_HASH, user_id=user.id)
        await commit_and_release(ctx.session)
        if not (await ctx.passwords.verify(password, verified)).is_correct:
            return False
    return await ctx.session.fetch_value(CONFIRM_CREDENTIALS, user_id=user.id, verified_hash=verified) is not None


async def _take_attempt(
    ctx: Context, email: str, user: CredentialsRecord | None, network: str, *, is_known_to_any: bool
) -> Attempt:
    """Count an attempt before the password is checked. Raises TooManyRequestsError.

    If the account has signed in from the client's network before, only failed attempts for this account from this
    network delay a correct password. Otherwise, failed attempts for this account from other networks, and for other
    accounts from this network, also delay it.

    If any account has signed in from the network, the counters that include other networks or accounts refuse an
    attempt only after the password is hashed: a faster refusal would reveal to users of the network which accounts
    exist.
    """
    free = ctx.settings.throttle_account_attempts
    # Take the network's counters first: an attempt that they refuse must not count against the account.
    by_address = client_counters("sign-in from address", ctx.client.ip_address, ctx.settings, reports_outcome=True)
    elsewhere = AttemptCounter("sign-in from elsewhere", email, free, reports_outcome=True)
    if not is_known_to_any:
        await ctx.throttle.commit_and_take(ctx.session, *by_address, elsewhere)
        return Attempt(elsewhere, [*by_address, elsewhere])
    known = AttemptCounter("sign-in from known network", f"{email} {network}", free, reports_outcome=True)
    # If the account has signed in from this network, the refusal applies only to incorrect passwords.
    refusal = await ctx.throttle.commit_and_take(ctx.session, known, deferred=[*by_address, elsewhere])
    account = known if user is not None and user.is_known_network else elsewhere
    return Attempt(account, [known] if refusal else [known, *by_address, elsewhere], refusal)


async def _reset_counters(ctx: Context, attempt: Attempt) -> None:
    """Reset the account's counter, and refund this attempt to the shared counters.

    The shared counters are not reset: otherwise, attackers could sign in to their own account to clear the limit on
    guesses for other accounts.
    """
    for counter in attempt.taken:
        settle = ctx.throttle.reset if counter is attempt.account else ctx.throttle.refund
        await settle(ctx.session, counter)


async def _settle_missing_factor(ctx: Context, attempt: Attempt, found: FactorCheck) -> None:
    """Refund an attempt with a correct password but no second factor, unless the account had several in a row."""
    settle = ctx.throttle.refund if found is FactorCheck.MISSING else ctx.throttle.mark_failed
    for counter in attempt.taken:
        await settle(ctx.session, counter)


async def _choose_scope(
    ctx: Context,
    user: CredentialsRecord,
    owner: Owner,
    factors: Factors | None,
    attempt: Attempt,
    requested: str,
) -> str:
    """Return the scope of the session. A refused scope is counted like a missing second factor. Raises OAuthError."""
    try:
        return grant_scope(requested, list_allowed_scopes(ctx.settings, factors, is_admin=user.is_admin))
    except OAuthError as error:
        # The refusal reveals that the password is correct, as `mfa_required` does, so `check_factor` counts both.
        found = FactorCheck.MISSING
        if factors is not None:
            found = await codes.check_factor(ctx, owner, factors, Proof(None, None))
        await _settle_missing_factor(ctx, attempt, found)
        if user.is_admin:
            detail = (
                "Administrators need a second factor for the scope admin. Sign in without this scope, set up a second"
                " factor, and sign in again."
            )
            raise OAuthError("invalid_scope", detail, code="admin-needs-second-factor", commit_anyway=True) from error
        raise OAuthError(error.error, error.detail, code=error.code, commit_anyway=True) from error


async def _check_second_factor(
    ctx: Context, user: CredentialsRecord, owner: Owner, factors: Factors, attempt: Attempt, proof: Proof
) -> None:
    found = await codes.check_factor(ctx, owner, factors, proof)
    if found is FactorCheck.CORRECT:
        return
    if found is FactorCheck.INCORRECT:
        raise await _record_failure(ctx, user, attempt, "second factor")
    SIGN_INS.labels("second_factor_missing").inc()
    await _settle_missing_factor(ctx, attempt, found)
    raise OAuthError("mfa_required", codes.FACTOR_REQUIRED, code="second-factor-required", commit_anyway=True)


async def _record_failure(ctx: Context, user: CredentialsRecord | None, attempt: Attempt, reason: str) -> AppError:
    for counter in attempt.taken:
        await ctx.throttle.mark_failed(ctx.session, counter)
    if attempt.refusal is not None:
        return attempt.refusal
    SIGN_INS.labels("failure" if reason == "password" else "second_factor_refused").inc()
    _log_failure(ctx)
    await ctx.audit.record(AccountEvent.SIGN_IN_FAILED, user.id if user else None, reason=reason)
    if reason == "password":
        detail, code = _incorrect_credentials(ctx)
    else:
        detail, code = codes.INCORRECT_CODE, "incorrect-code"
    return OAuthError("invalid_grant", detail, code=code, commit_anyway=True)


def _log_failure(ctx: Context) -> None:
    """Log for fail2ban, without the typed e-mail address: users may have typed their password there by mistake."""
    address = ctx.client.ip_address
    logger.warning("sign-in failed", client=address, network=network_of(address))


def _incorrect_credentials(ctx: Context) -> tuple[str, str]:
    """Return one sentence and code for all reasons: the answer must not reveal who has an account."""
    if ctx.settings.email_verification_required:
        return INCORRECT_OR_UNVERIFIED, "incorrect-credentials-or-unverified"
    return INCORRECT_CREDENTIALS, "incorrect-credentials"


async def sign_in_with_passkey(ctx: Context, data: PasskeySignIn) -> TokenRead:
    opened = await open_session_with_passkey(ctx, data)
    return await issue(ctx, opened.user_id, opened.session_id, opened.scope)


async def open_session_with_passkey(ctx: Context, data: PasskeySignIn, *bound_to: str) -> OpenedSession:
    """Begin a session with a passkey, which has verified its user (PIN or biometrics). Raises PasskeyRefusedError."""
    try:
        # Lock order: user, then the challenge and the passkey, which use_passkey changes.
        presented_id = passkeys.encode(data.credential.id)
        passkey = await ctx.session.fetch_one_or_none(passkeys.PASSKEY, presented_id=presented_id)
        user: LockedUserRecord | None = None
        if passkey is not None:
            user = await ctx.session.fetch_one_or_none(LOCK_ACTIVE_USER, user_id=passkey.user_id)
        await passkeys.use_passkey(ctx, data.credential, *bound_to)
        if user is None or (ctx.settings.email_verification_required and user.email_verified_at is None):
            raise PasskeyRefusedError(INACTIVE_ACCOUNT)
    except PasskeyRefusedError as refusal:
        SIGN_INS.labels("failure").inc()
        _log_failure(ctx)
        # Attempts without a valid challenge are not limited, so they must not fill the audit log.
        if refusal.code != INVALID_CHALLENGE:
            await ctx.audit.record(AccountEvent.SIGN_IN_FAILED, None, reason="passkey")
        raise
    allowed = list_allowed(is_admin=user.is_admin)
    scopes = allowed if data.scope is None else data.scope
    if not scopes <= allowed:
        raise ForbiddenError(SCOPE_NOT_ALLOWED, code="scope-not-allowed", commit_anyway=True)
    await remember_network(ctx, user.id)
    return await _begin_session(ctx, user.id, format_scope(scopes))


async def purge(session: Session, settings: Settings) -> int:
    """Delete expired sessions, unused networks and expired counters; return their number."""
    deleted = await sessions.purge_sessions(session)
    deleted += await session.run(PURGE_NETWORKS, used_before=utc_now() - KNOWN_NETWORK_LIFETIME)
    return deleted + await purge_counts(session, settings)
