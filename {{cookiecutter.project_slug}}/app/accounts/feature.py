from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from app.accounts import emails, one_time_tokens
from app.accounts.identity_cache import IdentityCache
from app.accounts.passkeys.router import router as passkeys
from app.accounts.passwords.router import confirmation
from app.accounts.passwords.router import router as passwords
from app.accounts.quotas import QUOTAS, Quotas
from app.accounts.recovery.router import address
from app.accounts.recovery.router import router as recovery
from app.accounts.second_factor.router import router as second_factor
from app.accounts.sessions.router import router as sessions
from app.accounts.sign_in import service as sign_in_service
from app.accounts.sign_in.exceptions import OAuthError, handle_oauth_error
from app.accounts.sign_in.passkeys_router import router as passkey_sign_in
from app.accounts.sign_in.router import router as sign_in
from app.accounts.sign_up.router import router as sign_up
from app.accounts.users import service as users_service
from app.accounts.users.router import router as users
from app.accounts.users.schemas import UserCreate
from app.core.config.settings import Settings
from app.core.context import Context
from app.core.db.session import Database, Session
from app.core.feature import Feature
from app.core.http.routing import FeatureRouter
from app.core.upstream.http_client import LazyHttpClient

DEMO_EMAIL = "demo@example.com"
DEMO_PASSWORD = "demo-password"  # noqa: S105  # shown in README.md; only RESET_DB creates this account, and never in production


async def load_sample_data(ctx: Context) -> None:
    data = UserCreate.model_validate({"email": DEMO_EMAIL, "password": DEMO_PASSWORD, "name": "Demo"})
    await users_service.create_user(ctx, data, is_admin=True)


async def purge(session: Session, settings: Settings) -> int:
    """Delete expired rows, and return their number."""
    deleted = await one_time_tokens.purge_tokens(session, settings)
    return deleted + await sign_in_service.purge(session, settings)


@asynccontextmanager
async def open_accounts(
    settings: Settings, database: Database, _http: LazyHttpClient
) -> AsyncIterator[Mapping[str, object]]:
    database.info[QUOTAS] = Quotas(settings.max_rows_per_user) if settings.max_rows_per_user else None
    yield {"identity_cache": IdentityCache(settings.auth_cache_seconds)}


# One router around several others of the same prefix: a request to another path skips all of them in one step.
auth = FeatureRouter(prefix="/auth")
for each in (sign_in, sessions, recovery, second_factor, confirmation, passkey_sign_in, passkeys):
    auth.include_router(each)
own_account = FeatureRouter(prefix="/users")
for each in (passwords, address):
    own_account.include_router(each)

feature = Feature(
    # The busiest router comes first, because routers are tried in order.
    api=(users, auth, sign_up, own_account),
    exception_handlers={OAuthError: handle_oauth_error},
    lifespan=open_accounts,
    purge=purge,
    load_sample_data=load_sample_data,
    emails=emails.RENDERERS,
    commands="app.accounts.commands:commands",
)
