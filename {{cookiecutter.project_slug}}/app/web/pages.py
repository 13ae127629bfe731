from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.core.config import Settings
from app.core.database import Database
from app.core.project import read_project
from app.core.upstream.http_client import LazyHttpClient
from app.web.assets import Assets
from app.web.sections import Section
from app.web.settings import WebSettings
from app.web.signing import Signer
from app.web.texts import Texts

logger = structlog.get_logger(__name__)

ROOT = Path(__file__).parent
NOTHING = "'none'"
CONTENT_SECURITY_POLICY = {
    "default-src": [NOTHING],
    "style-src": ["'self'"],
    "img-src": ["'self'"],
    "form-action": ["'self'"],
    "base-uri": [NOTHING],
    "frame-ancestors": [NOTHING],
}
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Web:
    """What all pages share."""

    signer: Signer
    assets: Assets
    texts: Texts
    environment: Environment

    def render(self, template: str, **values: Any) -> str:  # noqa: ANN401  # to Jinja
        return self.environment.get_template(template).render(values)


@asynccontextmanager
async def open_web(
    settings: Settings, _database: Database, _http: LazyHttpClient, sections: Sequence[Section]
) -> AsyncIterator[Mapping[str, object]]:
    texts, assets = Texts(settings.of(WebSettings).locale), Assets()
    if texts.gaps:
        logger.warning("English stands in for texts of the pages", language=texts.language, gaps=texts.gaps)
    environment = Environment(
        loader=FileSystemLoader(ROOT),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"t": texts, "asset": assets.url, "service": read_project().title, "sections": sections}
    environment.filters |= {"moment": _moment, "translate": texts.translate}
    yield {"web": Web(Signer(settings), assets, texts, environment)}


def page_headers(*added: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the headers of a page; features and pages add sources to directives of its Content-Security-Policy."""
    policy = dict(CONTENT_SECURITY_POLICY)
    for directive, sources in (item for each in added for item in each.items()):
        # Browsers ignore 'none' beside another source, with a warning.
        policy[directive] = [source for source in policy.get(directive, []) if source != NOTHING] + [*sources]
    text = "; ".join(f"{directive} {' '.join(sources)}" for directive, sources in policy.items())
    return {**HEADERS, "Content-Security-Policy": text}


def _moment(value: datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M} UTC"
