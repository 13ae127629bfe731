"""A fake of the other services that the service calls: a test sets their responses, and reads the requests to them."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import httpx2
import pytest

Outcome: TypeAlias = Callable[[], httpx2.Response] | Exception


class Outgoing:
    """Pass `transport` to `create_app`: the service's own client then sends its requests here."""

    def __init__(self) -> None:
        self.requests: list[httpx2.Request] = []
        self.unexpected: list[str] = []
        self.transport = httpx2.MockTransport(self._handle)
        self._outcomes: dict[tuple[str, httpx2.URL], list[Outcome]] = defaultdict(list)

    def answer(self, method: str, url: str, status: int = 200, **content: object) -> None:
        """Answer with `json`, `text`, `content` or `headers`, the arguments of httpx2.Response.

        A URL without a query matches every query. Several outcomes for one method and URL are used in turn, and the
        last one repeats.
        """
        self._add(method, url, partial(httpx2.Response, status, **content))  # type: ignore[arg-type]  # httpx2 checks them

    def fail(self, method: str, url: str, error: Exception) -> None:
        """Let a request fail with an error of the transport, such as httpx2.ConnectError."""
        self._add(method, url, error)

    def _add(self, method: str, url: str, outcome: Outcome) -> None:
        # Normalises the URL, as the client does.
        request = httpx2.Request(method, url)
        self._outcomes[request.method, request.url].append(outcome)

    def _handle(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        outcomes = self._outcomes.get((request.method, request.url)) or self._outcomes.get(
            (request.method, request.url.copy_with(query=None))
        )
        if not outcomes:
            self.unexpected.append(f"{request.method} {request.url}")
            # pytest.fail raises a BaseException; the service would handle an Exception.
            pytest.fail(self.complaint)
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome()

    @property
    def complaint(self) -> str:
        calls = ", ".join(self.unexpected)
        return f"The service made a call that the test does not expect: {calls}. Add outgoing.answer(...) for it."
