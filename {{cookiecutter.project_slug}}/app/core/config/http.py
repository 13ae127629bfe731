import re

from pydantic import Field, ValidationInfo, field_validator

from app.core.addresses import WebUrl, to_ascii_url
from app.core.config.base import Count, Environment, GeneralSettings, StrList, Wait, is_deployed
from app.core.hosts import normalize_host_header, normalize_origin

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
# Excludes the path segments . and .., which clients remove from a URL.
PATH_PREFIX = re.compile(r"(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._~-]+)+")


class HttpSettings(GeneralSettings, title="HTTP"):
    allowed_hosts: StrList = Field(
        default=LOCAL_HOSTS,
        description="Host names under which clients reach the service, without ports; requests with another `Host`"
        " header are refused. `*.example.com` stands for all subdomains. Must be set in staging and production.",
    )
    public_url: WebUrl | None = Field(
        default=None,
        description="URL under which people reach the service; links in e-mails begin with it. Unset: `https://` and"
        " the first of `ALLOWED_HOSTS`. The domain may be written in Unicode or Punycode.",
    )
    api_prefix: str = Field(default="/api/v1", description="Path that the routes of the API begin with.")
    docs_enabled: bool | None = Field(
        default=None,
        description="Whether `/docs`, `/redoc` and `/openapi.json` are served. Unset: everywhere except in production.",
    )
    cors_origins: StrList = Field(
        default=(),
        description="Origins of the sites whose pages may call the API, such as `https://example.com`; `*` allows all.",
    )
    cors_allow_credentials: bool = Field(
        default=False,
        description="Whether pages of `CORS_ORIGINS` may send cookies. Refused together with `CORS_ORIGINS=*`.",
    )
    max_concurrent_requests: Count = Field(
        default=200,
        description="Maximum number of requests that each worker processes at once. A request beyond the maximum waits"
        " for up to half a second, then gets a 503.",
    )
    max_body_bytes: int = Field(
        default=1024 * 1024,
        ge=1,
        le=1024**4,
        description="Largest request body; a larger one gets a 413. More than 1 MiB also needs a larger"
        " `client_max_body_size` in `deploy/nginx/site.conf`. Upload routes have their own limit; forms are limited"
        " to 16 KiB in the API and 128 KiB in pages.",
    )
    readiness_timeout_seconds: Wait = Field(
        default=2,
        description="Longest time that the checks of `/health/ready` may take; after that, `/health/ready` answers"
        " 503.",
    )
    access_log: bool = Field(
        default=True,
        description="Whether each request is logged, except for health checks. `false` avoids duplicates where the"
        " proxy already logs the requests.",
    )

    @field_validator("api_prefix")
    @classmethod
    def check_prefix(cls, value: str) -> str:
        if not PATH_PREFIX.fullmatch(value):
            raise ValueError(
                "must be a path such as /api/v1, of letters, digits and the characters - . _ ~, without a slash at the"
                " end"
            )
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def require_hosts(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        hosts = tuple(map(normalize_host_header, value))
        if not hosts or (is_deployed(info) and not set(hosts) - set(LOCAL_HOSTS)):
            local = "; local names such as localhost are not enough" if hosts else ""
            raise ValueError(f"must list the host names under which clients reach the service{local}")
        if is_deployed(info) and "*" in hosts:
            raise ValueError("must not be *: list the host names under which clients reach the service")
        return hosts

    @field_validator("cors_origins")
    @classmethod
    def check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(normalize_origin, value))

    @field_validator("cors_allow_credentials")
    @classmethod
    def refuse_open_cors(cls, value: bool, info: ValidationInfo) -> bool:
        if value and "*" in info.data.get("cors_origins", ()):
            raise ValueError(
                "must not be combined with CORS_ORIGINS=*, which would let any site act for a signed-in user: list the"
                " origins in CORS_ORIGINS"
            )
        return value

    @property
    def serves_docs(self) -> bool:
        return self.environment is not Environment.PRODUCTION if self.docs_enabled is None else self.docs_enabled

    @property
    def service_url(self) -> str:
        """The URL under which people reach the service: PUBLIC_URL or, if unset, https and the first allowed host."""
        host = self.allowed_hosts[0].removeprefix("*.") if self.allowed_hosts else "localhost"
        return (self.public_url or to_ascii_url(f"https://{'localhost' if host == '*' else host}")).rstrip("/")
