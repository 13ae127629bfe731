from functools import partial

from fastapi import APIRouter, Depends
from starlette.middleware import Middleware

from app.core.feature import Feature
from app.web import account, assets, emails, recovery, sign_in
from app.web.errors import ErrorPageMiddleware
from app.web.forms import RefusedFormError, get_fields, handle_refused_form
from app.web.pages import open_web
from app.web.sections import Section
from app.web.settings import WebSettings
from app.web.todos.router import section as todos
from app.web.visits import LogInRequiredError, redirect_to_log_in

# The menu has this order.
SECTIONS: tuple[Section, ...] = (
    sign_in.section,
    recovery.section,
    todos,
    account.section,
)

# No form is taken unless it is one of our own, also by routes that are yet to be written.
pages = APIRouter(include_in_schema=False, dependencies=[Depends(get_fields)])
for section in SECTIONS:
    pages.include_router(section.router)
root = APIRouter(include_in_schema=False)
root.include_router(assets.router)
root.include_router(pages)

feature = Feature(
    root=root,
    settings=WebSettings,
    exception_handlers={RefusedFormError: handle_refused_form, LogInRequiredError: redirect_to_log_in},
    lifespan=partial(open_web, sections=SECTIONS),
    middleware=(Middleware(ErrorPageMiddleware),),
    emails=emails.RENDERERS,
)
