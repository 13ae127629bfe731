from app.accounts.emails import EmailKind, commit_and_admit_sign_up
from app.accounts.events import AccountEvent
from app.accounts.models import UserRecord
from app.accounts.users import service as users_service
from app.accounts.users.schemas import UserCreate
from app.core.context import Context
from app.core.security.throttling import client_counters
from app.outbox import service as outbox_service


async def sign_up(ctx: Context, data: UserCreate) -> UserRecord | None:
    """Return the new user, or None if addresses must be verified: the response must not reveal who has an account.

    If addresses must be verified, several people may sign up with one address. The account goes to the sign-up that is
    confirmed first, which requires the code and the password of this sign-up. A stranger who signs up with another
    person's address can therefore neither block the address nor get it verified by its owner.
    Raises TooManyRequestsError.
    """
    counters = client_counters("sign-up from address", ctx.client.ip_address, ctx.settings)
    await ctx.throttle.commit_and_take(ctx.session, *counters)
    if not ctx.settings.email_verification_required:
        return await users_service.create_user(ctx, data)
    sends = await commit_and_admit_sign_up(ctx, data.email)
    password_hash = await users_service.hash_password(ctx, data)
    if await users_service.add_user(ctx, data, password_hash) is None:
        # Write an event, as for a new address, so that the response time does not reveal an existing account either.
        await ctx.audit.record(AccountEvent.SIGN_UP_REFUSED, None)
    if sends:
        # The hash is as safe here as in the table of users. It is deleted with the queued message, and with the
        # one-time token that the sent message contains.
        payload = {"password_hash": password_hash, "name": data.name}
        await outbox_service.enqueue(ctx.session, EmailKind.VERIFICATION, data.email, payload=payload)
    else:
        outbox_service.record_dropped(EmailKind.VERIFICATION)
    return None
