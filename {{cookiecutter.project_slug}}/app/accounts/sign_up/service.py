from app.accounts.emails import EmailKind, limit_messages
from app.accounts.events import AccountEvent
from app.accounts.models import UserRecord
from app.accounts.users import service as users_service
from app.accounts.users.schemas import UserCreate
from app.core.exceptions import ConflictError
from app.core.toolbox import Toolbox
from app.outbox import service as outbox_service


async def sign_up(tools: Toolbox, data: UserCreate) -> UserRecord | None:
    """Return the new user; where addresses are verified, nobody: the answer must not tell whether there is one."""
    if not tools.settings.email_verification_required:
        return await users_service.create_user(tools, data)
    await limit_messages(tools, EmailKind.VERIFICATION, data.email)
    try:
        user = await users_service.create_user(tools, data)
    except ConflictError:
        # As much work as for a new address: the time must not tell either.
        await tools.audit.record(AccountEvent.SIGN_UP_REFUSED, None)
        await outbox_service.enqueue(tools.session, EmailKind.ALREADY_REGISTERED, data.email)
    else:
        await outbox_service.enqueue(tools.session, EmailKind.VERIFICATION, data.email, user.id)
    return None
