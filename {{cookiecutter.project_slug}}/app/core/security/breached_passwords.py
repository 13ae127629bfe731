"""Lookup of breached passwords at BREACHED_PASSWORDS_URL (Have I Been Pwned's range API).

The API receives only the first five of the 40 hexadecimal digits of the password's SHA-1 hash. Thousands of passwords
share these five digits.
"""

import asyncio
import hashlib

import structlog

from app.core.security.password_strength import normalize_password
from app.core.upstream.http_client import LazyHttpClient, ResponseTooLargeError, describe_failure, read_body

logger = structlog.get_logger(__name__)
PREFIX_LENGTH = 5
TIMEOUT_SECONDS = 2
# A padded response has about 40 KB.
MAX_RESPONSE_BYTES = 1024**2


async def is_breached(http: LazyHttpClient, url: str, password: str) -> bool:
    """Return whether the password is in a breach; False if the lookup fails, as sign-up must not depend on it."""
    # Imported lazily: only services with BREACHED_PASSWORDS_URL need it.
    from httpx2 import HTTPError, InvalidURL, StreamError

    # The API requires SHA-1, which is not used for security here.
    digest = hashlib.sha1(normalize_password(password).encode(), usedforsecurity=False).hexdigest().upper()
    prefix, suffix = digest[:PREFIX_LENGTH], digest[PREFIX_LENGTH:]
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            body = await _fetch_range(http, f"{url.rstrip('/')}/{prefix}")
    except (TimeoutError, HTTPError, InvalidURL, StreamError, ResponseTooLargeError) as error:
        logger.warning("breached password lookup failed", reason=describe_failure(error))
        return False
    counts = dict(line.split(":", 1) for line in body.decode("ascii", "replace").split() if ":" in line)
    # The API pads responses with lines whose count is 0, which stand for no password.
    return counts.get(suffix, "0") != "0"


async def _fetch_range(http: LazyHttpClient, url: str) -> bytes:
    client = await http.get()
    async with client.stream("GET", url, headers={"Add-Padding": "true"}) as response:
        response.raise_for_status()
        return await read_body(response, MAX_RESPONSE_BYTES)
