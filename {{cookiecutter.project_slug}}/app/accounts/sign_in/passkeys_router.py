"""Sign-in with a passkey. The requests are JSON instead of OAuth's forms, since OAuth has no grant for passkeys."""

from fastapi import Response

from app.accounts.second_factor import passkeys
from app.accounts.sign_in import service
from app.accounts.sign_in.exceptions import NO_STORE
from app.accounts.sign_in.schemas import PasskeySignIn, TokenRead
from app.core.context import ContextDep
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter
from app.core.security.webauthn import JsonObject

router = FeatureRouter(prefix="/passkeys/sign-in", tags=["auth"])


@router.post("/options", responses=problem_responses(429))
async def begin_passkey_sign_in(ctx: ContextDep) -> JsonObject:
    """Get WebAuthn options, which name no account, as input of `PublicKeyCredential.parseRequestOptionsFromJSON`."""
    return await passkeys.make_options(ctx)


@router.post("", responses=problem_responses(403, 422))
async def sign_in_with_passkey(data: PasskeySignIn, ctx: ContextDep, response: Response) -> TokenRead:
    """Sign in with a passkey's response to options from `/auth/passkeys/sign-in/options`, valid for five minutes."""
    response.headers.update(NO_STORE)
    return await service.sign_in_with_passkey(ctx, data)
