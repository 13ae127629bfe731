from app.accounts.emails import EmailKind, admit_sign_up
from app.accounts.events import AccountEvent
from app.accounts.models import UserRecord
from app.accounts.users import service as users_service
from app.accounts.users.schemas import UserCreate
from app.core.toolbox import Toolbox
from app.outbox import service as outbox_service


async def sign_up(tools: Toolbox, data: UserCreate) -> UserRecord | None:
    """Return the new user; where addresses are verified, nobody: the answer must not tell whether there is one.

    There, whoever confirms a sign-up with its password gets the account, not whoever came first: a stranger who signs
    up with somebody's address neither keeps it from them nor has it verified by them.
    """
    if not tools.settings.email_verification_required:
        return await users_service.create_user(tools, data)
    sends = await admit_sign_up(tools, data.email)
    password_hash = await users_service.hash_password(tools, data)
    if await users_service.add_user(tools, data, password_hash) is None:
        # As much work as for a new address: the time must not tell either.
        await tools.audit.record(AccountEvent.SIGN_UP_REFUSED, None)
    if sends:
        # The hash is no more of a secret here than in the table of users, and gone once the message is sent.
        payload = {"password_hash": password_hash, "name": data.name}
        await outbox_service.enqueue(tools.session, EmailKind.VERIFICATION, data.email, payload=payload)
    else:
        outbox_service.note_dropped(EmailKind.VERIFICATION)
    return None
