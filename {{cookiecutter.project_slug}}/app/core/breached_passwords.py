"""Passwords that were stolen elsewhere, asked for at BREACHED_PASSWORDS_URL (the range API of Have I Been Pwned).

The service there learns five of the 40 digits of a hash, which thousands of passwords share, and nothing else.
"""

import asyncio
import hashlib

import structlog

from app.core.database import commit_and_release
from app.core.exceptions import UnprocessableError
from app.core.http_client import LazyHttpClient, ResponseTooLargeError, describe_failure, read_body
from app.core.passwords import normalize_password, refuse_weak_password
from app.core.toolbox import Toolbox

logger = structlog.get_logger(__name__)

PREFIX_LENGTH = 5
TIMEOUT_SECONDS = 2
# A padded answer has some 40 KB.
MAX_ANSWER_BYTES = 1024**2


async def refuse_unfit_password(tools: Toolbox, password: str, *own: str) -> None:
    """Raises UnprocessableError for a password that is weak or, where it is asked for, known from a breach.

    Comes before any change: it gives the connection back.
    """
    await refuse_weak_password(password, *own)
    url = tools.settings.breached_passwords_url
    if url is None or tools.http is None:
        return
    # Nobody waits for a connection, or for a lock, because another service is slow.
    await commit_and_release(tools.session)
    if await _is_breached(tools.http, url, password):
        raise UnprocessableError("The password is known from a breach of another service: take another one.")


async def _is_breached(http: LazyHttpClient, url: str, password: str) -> bool:
    """Return False where it cannot be found out: sign-up does not depend on another service."""
    # Imported lazily: few services need the HTTP client at sign-up.
    from httpx2 import HTTPError, InvalidURL, StreamError

    # The API looks up SHA-1; it protects nothing here.
    digest = hashlib.sha1(normalize_password(password).encode(), usedforsecurity=False).hexdigest().upper()
    prefix, suffix = digest[:PREFIX_LENGTH], digest[PREFIX_LENGTH:]
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            body = await _fetch_range(http, f"{url.rstrip('/')}/{prefix}")
    except (TimeoutError, HTTPError, InvalidURL, StreamError, ResponseTooLargeError) as error:
        logger.warning("breached passwords cannot be looked up", reason=describe_failure(error))
        return False
    counts = dict(line.split(":", 1) for line in body.decode("ascii", "replace").split() if ":" in line)
    # Padding has a count of 0.
    return counts.get(suffix, "0") != "0"


async def _fetch_range(http: LazyHttpClient, url: str) -> bytes:
    client = await http.get()
    async with client.stream("GET", url, headers={"Add-Padding": "true"}) as response:
        response.raise_for_status()
        return await read_body(response, MAX_ANSWER_BYTES)
