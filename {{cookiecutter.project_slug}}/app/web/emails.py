"""E-mails about accounts. Their links lead to the pages of this service, unless ACCOUNT_PAGES_URL is set."""

from functools import partial

from app.accounts.emails import (
    EmailKind,
    link_to_application,
    render_email_change,
    render_password_reset,
    render_verification,
)
from app.core.config.settings import Settings
from app.core.email.message import Renderer


def link_to_pages(settings: Settings, page: str, token: str) -> str:
    """Return the link to a page, with the token in the query if it is a page of this service.

    The pages work without JavaScript, but only JavaScript could read a token in the fragment. A token in the query is
    not logged, because the logs of the service omit queries.
    """
    return link_to_application(settings, page, token) or f"{settings.service_url}/{page}?token={token}"


RENDERERS: dict[str, Renderer] = {
    EmailKind.VERIFICATION: partial(render_verification, link_to=link_to_pages),
    EmailKind.PASSWORD_RESET: partial(render_password_reset, link_to=link_to_pages),
    EmailKind.EMAIL_CHANGE: partial(render_email_change, link_to=link_to_pages),
}
