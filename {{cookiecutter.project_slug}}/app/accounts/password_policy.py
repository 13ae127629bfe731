from app.core.context import Context
from app.core.db.session import commit_and_release
from app.core.errors import UnprocessableError
from app.core.security.breached_passwords import is_breached
from app.core.security.password_strength import refuse_weak_password


async def refuse_unfit_password(ctx: Context, password: str, *own: str) -> None:
    """Raise UnprocessableError if the password is weak or, where BREACHED_PASSWORDS_URL is set, known from a breach.

    Call this function before any change: it commits the transaction, so that the database connection is free while the
    other service answers.
    """
    await refuse_weak_password(password, *own)
    url = ctx.settings.breached_passwords_url
    if url is None or ctx.http is None:
        return
    # Release the database connection and all locks: the service at BREACHED_PASSWORDS_URL may be slow.
    await commit_and_release(ctx.session)
    if await is_breached(ctx.http, url, password):
        raise UnprocessableError(
            "This password is known from a breach of another service. Choose another one.", code="password-breached"
        )
