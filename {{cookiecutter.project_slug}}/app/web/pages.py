from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.project import read_project
from app.core.upstream.http_client import LazyHttpClient
from app.web.assets import Assets
from app.web.i18n import Translations
from app.web.navigation import PageGroup
from app.web.settings import WebSettings
from app.web.signing import Signer

logger = structlog.get_logger(__name__)

ROOT = Path(__file__).parent
NONE = "'none'"
CONTENT_SECURITY_POLICY = {
    "default-src": [NONE],
    "style-src": ["'self'"],
    "img-src": ["'self'"],
    "form-action": ["'self'"],
    "base-uri": [NONE],
    "frame-ancestors": [NONE],
}
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Web:
    """Resources shared by all pages, as `request.state["web"]`."""

    signer: Signer
    assets: Assets
    translations: Translations
    environment: Environment

    def render(self, template: str, **values: Any) -> str:  # noqa: ANN401  # passed to Jinja
        return self.environment.get_template(template).render(values)


@asynccontextmanager
async def open_web(
    settings: Settings, _database: Database, _http: LazyHttpClient, page_groups: Sequence[PageGroup]
) -> AsyncIterator[Mapping[str, object]]:
    translations, assets = Translations(settings.of(WebSettings).locale), Assets()
    if translations.gaps:
        logger.warning(
            "some texts of the pages are shown in English", language=translations.language, gaps=translations.gaps
        )
    environment = Environment(
        loader=FileSystemLoader(ROOT),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "t": translations,
        "asset": assets.url,
        "service": read_project().title,
        "page_groups": page_groups,
    }
    environment.filters |= {"format_time": _format_time}
    yield {"web": Web(Signer(settings), assets, translations, environment)}


def page_headers(*added: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return a page's headers; `added` are more sources for its Content-Security-Policy, by directive."""
    policy = dict(CONTENT_SECURITY_POLICY)
    for directive, sources in (item for each in added for item in each.items()):
        # Remove 'none' if there are other sources: browsers would ignore it, and log a warning.
        policy[directive] = [source for source in policy.get(directive, []) if source != NONE] + [*sources]
    text = "; ".join(f"{directive} {' '.join(sources)}" for directive, sources in policy.items())
    return {**HEADERS, "Content-Security-Policy": text}


def _format_time(value: datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M} UTC"
