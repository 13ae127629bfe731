"""The passkeys of one's account, and the script that asks a browser for one."""

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
from app.web.forms import FieldsDep, read_fields, show_form, shown_again
from app.web.visits import CallerDep, PersonDep, VisitDep

OVERVIEW, CREATE = "templates/passkeys.html", "templates/create_passkey.html"
REMOVE, CODES = "templates/remove_passkey.html", "templates/recovery_codes.html"
# Of the pages with a button for passkeys; no other page runs a script.
SCRIPT_SOURCES = {"script-src": ("'self'",), "connect-src": ("'self'",)}

router = APIRouter(prefix="/passkeys")


async def allow_script(visit: VisitDep) -> None:
    visit.sources = SCRIPT_SOURCES


async def get_passkey_of_person(passkey_id: UUID, person: PersonDep, session: SessionDep) -> PasskeyRecord:
    return await passkeys.get_passkey(session, person.id, passkey_id)


OwnPasskeyDep = Annotated[PasskeyRecord, Depends(get_passkey_of_person)]


@router.get("")
async def show_passkeys(visit: VisitDep, person: PersonDep, session: SessionDep) -> Response:
    return show_form(visit, OVERVIEW, passkeys=await passkeys.list_passkeys(session, person.id))


@router.post("/begin")
async def begin_own_passkey(visit: VisitDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    known = await passkeys.list_passkeys(ctx.session, caller.user.id)
    with shown_again(visit, OVERVIEW, fields, passkeys=known):
        options = await passkeys.begin(ctx, caller, read_fields(PasswordConfirmation, fields))
    return show_form(visit, CREATE, options=json.dumps(options))


@router.post("")
async def create_own_passkey(visit: VisitDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    """What is refused begins again: its challenge is used up."""
    known = await passkeys.list_passkeys(ctx.session, caller.user.id)
    with shown_again(visit, OVERVIEW, fields, passkeys=known):
        created = await passkeys.create(ctx, caller, read_fields(PasskeyCreate, fields))
    if created.recovery_codes:
        return visit.page(CODES, codes=created.recovery_codes)
    return visit.go("/account/passkeys", "flash.passkey_added")


@router.get("/{passkey_id}/remove")
async def show_removal(visit: VisitDep, passkey: OwnPasskeyDep) -> Response:
    return show_form(visit, REMOVE, passkey=passkey)


@router.post("/{passkey_id}/remove")
async def remove_own_passkey(
    visit: VisitDep, caller: CallerDep, passkey: OwnPasskeyDep, fields: FieldsDep, ctx: ContextDep
) -> Response:
    with shown_again(visit, REMOVE, fields, passkey=passkey):
        await passkeys.remove(ctx, caller, passkey, read_fields(PasswordConfirmation, fields))
    return visit.go("/account/passkeys", "flash.passkey_removed")
