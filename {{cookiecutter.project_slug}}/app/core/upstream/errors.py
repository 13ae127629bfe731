from app.core.errors import AppError


class UpstreamError(AppError):
    """A call to another service failed; StaleCache may return a stale value instead."""

    status = 502
    code = "upstream-failed"

    def __init__(self, detail: str, retry_after_seconds: float = 1) -> None:
        super().__init__(detail)
        self.retry_after_seconds = max(1, round(retry_after_seconds))
        self.headers = {"Retry-After": str(self.retry_after_seconds)}


class TransientUpstreamError(UpstreamError):
    """The upstream answered 5xx or closed the connection: a retry may succeed."""


class UpstreamUnreachableError(TransientUpstreamError):
    status = 503
    code = "upstream-unreachable"


class InvalidUpstreamResponseError(UpstreamError):
    code = "upstream-invalid-response"


class UpstreamCredentialsError(UpstreamError):
    """The upstream answered 401 or 403."""

    code = "upstream-credentials-refused"


class UpstreamRateLimitedError(UpstreamError):
    """The upstream answered 429."""

    status = 503
    code = "upstream-rate-limited"


class UpstreamSkippedError(UpstreamError):
    """No request was sent: the circuit breaker is open, or too many calls are waiting."""

    status = 503
    code = "upstream-unavailable"


class UpstreamTimeoutError(UpstreamError):
    status = 504
    code = "upstream-timeout"


class UpstreamTimeoutTooShortError(UpstreamTimeoutError):
    """The attempt had so little time left that its timeout does not count against the upstream."""


class UpstreamRefusedError(AppError):
    """The upstream works, but refused this request with `upstream_status`: raise an error of the feature instead."""

    status = 502
    code = "upstream-refused"

    def __init__(self, detail: str, upstream_status: int) -> None:
        super().__init__(detail)
        self.upstream_status = upstream_status
