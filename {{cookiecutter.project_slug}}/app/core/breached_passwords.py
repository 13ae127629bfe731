"""Look up passwords that were stolen from other services, at BREACHED_PASSWORDS_URL (Have I Been Pwned's range API).

That service receives the first five of the 40 digits of a SHA-1 hash, which thousands of passwords share.
"""

import asyncio
import hashlib

import structlog

from app.core.database import commit_and_release
from app.core.exceptions import UnprocessableError
from app.core.passwords import normalize_password, refuse_weak_password
from app.core.toolbox import Toolbox
from app.core.upstream.http_client import LazyHttpClient, ResponseTooLargeError, describe_failure, read_body

logger = structlog.get_logger(__name__)

PREFIX_LENGTH = 5
TIMEOUT_SECONDS = 2
# A padded response has about 40 KB.
MAX_RESPONSE_BYTES = 1024**2


async def refuse_unfit_password(tools: Toolbox, password: str, *own: str) -> None:
    """Raise UnprocessableError if the password is weak or, where BREACHED_PASSWORDS_URL is set, known from a breach.

    Call it before any change: it commits, to release the database connection.
    """
    await refuse_weak_password(password, *own)
    url = tools.settings.breached_passwords_url
    if url is None or tools.http is None:
        return
    # The other service may be slow; meanwhile this request holds no connection and no lock.
    await commit_and_release(tools.session)
    if await _is_breached(tools.http, url, password):
        raise UnprocessableError(
            "This password is known from a breach of another service. Choose another one.", code="password-breached"
        )


async def _is_breached(http: LazyHttpClient, url: str, password: str) -> bool:
    """Return whether the password is known; False if the lookup fails, since sign-up must not depend on it."""
    # Imported lazily: only services with BREACHED_PASSWORDS_URL need it.
    from httpx2 import HTTPError, InvalidURL, StreamError

    # The API is keyed by SHA-1, which protects nothing here.
    digest = hashlib.sha1(normalize_password(password).encode(), usedforsecurity=False).hexdigest().upper()
    prefix, suffix = digest[:PREFIX_LENGTH], digest[PREFIX_LENGTH:]
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            body = await _fetch_range(http, f"{url.rstrip('/')}/{prefix}")
    except (TimeoutError, HTTPError, InvalidURL, StreamError, ResponseTooLargeError) as error:
        logger.warning("breached password lookup failed", reason=describe_failure(error))
        return False
    counts = dict(line.split(":", 1) for line in body.decode("ascii", "replace").split() if ":" in line)
    # Padding lines have a count of 0.
    return counts.get(suffix, "0") != "0"


async def _fetch_range(http: LazyHttpClient, url: str) -> bytes:
    client = await http.get()
    async with client.stream("GET", url, headers={"Add-Padding": "true"}) as response:
        response.raise_for_status()
        return await read_body(response, MAX_RESPONSE_BYTES)
