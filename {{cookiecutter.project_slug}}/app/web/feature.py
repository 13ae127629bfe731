from functools import partial

from fastapi import APIRouter, Depends
from starlette.middleware import Middleware

from app.core.feature import Feature
from app.web import account, assets, emails, recovery, sign_in
from app.web.errors import ErrorPageMiddleware
from app.web.forms import FormError, get_fields, redisplay_form
from app.web.navigation import PageGroup
from app.web.page_context import SignInRequiredError, redirect_to_sign_in
from app.web.pages import open_web
from app.web.settings import WebSettings
from app.web.todos.router import page_group as todos

# The groups have the order of the menu.
PAGE_GROUPS: tuple[PageGroup, ...] = (
    sign_in.page_group,
    recovery.page_group,
    todos,
    account.page_group,
)

# `get_fields` checks the CSRF token of every form, even if the route does not read the form.
pages = APIRouter(include_in_schema=False, dependencies=[Depends(get_fields)])
for group in PAGE_GROUPS:
    pages.include_router(group.router)
root = APIRouter(include_in_schema=False)
root.include_router(assets.router)
root.include_router(pages)

feature = Feature(
    root=root,
    settings=WebSettings,
    exception_handlers={FormError: redisplay_form, SignInRequiredError: redirect_to_sign_in},
    lifespan=partial(open_web, page_groups=PAGE_GROUPS),
    middleware=(Middleware(ErrorPageMiddleware),),
    emails=emails.RENDERERS,
)
