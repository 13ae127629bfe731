from app.accounts.dependencies import CurrentCaller, CurrentUser
from app.accounts.passkeys import service
from app.accounts.passkeys.dependencies import OwnPasskeyDep
from app.accounts.passkeys.schemas import PasskeyCreate, PasskeyCreated, PasskeyRead
from app.accounts.passkeys.service import PasskeyRecord
from app.accounts.second_factor.schemas import PasswordConfirmation
from app.core.context import ContextDep
from app.core.dependencies import SessionDep
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter
from app.core.security.webauthn import JsonObject

router = FeatureRouter(prefix="/passkeys", tags=["auth"])


@router.get("", response_model=list[PasskeyRead], responses=problem_responses(401, 403))
async def list_passkeys(user: CurrentUser, session: SessionDep) -> list[PasskeyRecord]:
    """List the account's passkeys, oldest first."""
    return await service.list_passkeys(session, user.id)


@router.post("/options", responses=problem_responses(401, 403, 409, 422, 429))
async def begin_passkey(data: PasswordConfirmation, caller: CurrentCaller, ctx: ContextDep) -> JsonObject:
    """Get WebAuthn options for a new passkey, as input of `PublicKeyCredential.parseCreationOptionsFromJSON`."""
    return await service.begin(ctx, caller, data)


@router.post("", status_code=201, responses=problem_responses(401, 403, 409, 422))
async def create_passkey(data: PasskeyCreate, caller: CurrentCaller, ctx: ContextDep) -> PasskeyCreated:
    """Add a passkey, created with options from `/auth/passkeys/options` in this session in the last five minutes."""
    return await service.create(ctx, caller, data)


@router.delete("/{passkey_id}", status_code=204, responses=problem_responses(401, 403, 404, 422, 429))
async def remove_passkey(
    data: PasswordConfirmation, passkey: OwnPasskeyDep, caller: CurrentCaller, ctx: ContextDep
) -> None:
    """Remove a passkey."""
    await service.remove(ctx, caller, passkey, data)
