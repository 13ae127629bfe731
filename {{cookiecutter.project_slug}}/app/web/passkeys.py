"""Pages of the account's passkeys, and the permission to run the script that they need."""

import json
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from app.accounts.passkeys import service as passkeys
from app.accounts.passkeys.schemas import PasskeyCreate
from app.accounts.passkeys.service import PasskeyRecord
from app.accounts.second_factor.schemas import PasswordConfirmation
from app.core.context import ContextDep
from app.core.dependencies import SessionDep
from app.web.forms import FieldsDep, redisplay_errors, render_form, validate_form
from app.web.page_context import CallerDep, CurrentUserDep, PageContextDep

OVERVIEW, CREATE = "templates/passkeys.html", "templates/create_passkey.html"
REMOVE, CODES = "templates/remove_passkey.html", "templates/recovery_codes.html"
# For pages with a passkey button; no other page runs a script.
SCRIPT_SOURCES = {"script-src": ("'self'",), "connect-src": ("'self'",)}

router = APIRouter(prefix="/passkeys")


async def allow_script(page: PageContextDep) -> None:
    page.sources = SCRIPT_SOURCES


async def get_own_passkey(passkey_id: UUID, user: CurrentUserDep, session: SessionDep) -> PasskeyRecord:
    return await passkeys.get_passkey(session, user.id, passkey_id)


OwnPasskeyDep = Annotated[PasskeyRecord, Depends(get_own_passkey)]


@router.get("")
async def show_passkeys(page: PageContextDep, user: CurrentUserDep, session: SessionDep) -> Response:
    return render_form(page, OVERVIEW, passkeys=await passkeys.list_passkeys(session, user.id))


@router.post("/begin")
async def begin_own_passkey(page: PageContextDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    known = await passkeys.list_passkeys(ctx.session, caller.user.id)
    with redisplay_errors(page, OVERVIEW, fields, passkeys=known):
        options = await passkeys.begin(ctx, caller, validate_form(PasswordConfirmation, fields))
    return render_form(page, CREATE, options=json.dumps(options))


@router.post("")
async def create_own_passkey(page: PageContextDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    """Add a passkey. An error leads back to the list of passkeys, because each challenge is valid only once."""
    known = await passkeys.list_passkeys(ctx.session, caller.user.id)
    with redisplay_errors(page, OVERVIEW, fields, passkeys=known):
        created = await passkeys.create(ctx, caller, validate_form(PasskeyCreate, fields))
    if created.recovery_codes:
        return page.render(CODES, codes=created.recovery_codes)
    return page.redirect("/account/passkeys", "flash.passkey_added")


@router.get("/{passkey_id}/remove")
async def show_removal(page: PageContextDep, passkey: OwnPasskeyDep) -> Response:
    return render_form(page, REMOVE, passkey=passkey)


@router.post("/{passkey_id}/remove")
async def remove_own_passkey(
    page: PageContextDep, caller: CallerDep, passkey: OwnPasskeyDep, fields: FieldsDep, ctx: ContextDep
) -> Response:
    with redisplay_errors(page, REMOVE, fields, passkey=passkey):
        await passkeys.remove(ctx, caller, passkey, validate_form(PasswordConfirmation, fields))
    return page.redirect("/account/passkeys", "flash.passkey_removed")
