from app.accounts.emails import EmailKind, admit_sign_up
from app.accounts.events import AccountEvent
from app.accounts.models import UserRecord
from app.accounts.users import service as users_service
from app.accounts.users.schemas import UserCreate
from app.core.context import Context
from app.outbox import service as outbox_service


async def sign_up(ctx: Context, data: UserCreate) -> UserRecord | None:
    """Return the new user; where addresses are verified, nobody: the answer must not tell whether there is one.

    There, whoever confirms a sign-up with its password gets the account, not whoever came first: a stranger who signs
    up with somebody's address neither keeps it from them nor has it verified by them.
    """
    if not ctx.settings.email_verification_required:
        return await users_service.create_user(ctx, data)
    sends = await admit_sign_up(ctx, data.email)
    password_hash = await users_service.hash_password(ctx, data)
    if await users_service.add_user(ctx, data, password_hash) is None:
        # As much work as for a new address: the time must not tell either.
        await ctx.audit.record(AccountEvent.SIGN_UP_REFUSED, None)
    if sends:
        # The hash is no more of a secret here than in the table of users, and gone once the message is sent.
        payload = {"password_hash": password_hash, "name": data.name}
        await outbox_service.enqueue(ctx.session, EmailKind.VERIFICATION, data.email, payload=payload)
    else:
        outbox_service.note_dropped(EmailKind.VERIFICATION)
    return None
