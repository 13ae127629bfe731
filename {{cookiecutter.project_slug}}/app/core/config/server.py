import importlib.util
import os
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from app.core.config.base import MAX_COUNT, MAX_PORT, GeneralSettings, Host, StrList, WholeWait
from app.core.hosts import normalize_proxies

# Kernel limit of a unix socket's path.
MAX_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
WORKER_CLASSES = ("uvicorn_worker.UvicornWorker", "uvicorn_worker.UvicornH11Worker")
# Only gunicorn has this worker class.
GUNICORN_WORKER_CLASS = "asgi"


class ServerSettings(GeneralSettings):
    """Settings of the process manager and its workers."""

    host: Host = Field(
        default="127.0.0.1",
        description="Address to listen on. `::` stands for all addresses, IPv4 included.",
    )
    port: int = Field(default=8000, ge=0, le=MAX_PORT, description="TCP port to listen on.")
    unix_socket: Path | None = Field(
        default=None,
        description="Unix socket to listen on, instead of `HOST` and `PORT`.",
    )
    web_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Number of worker processes. Unset: one per CPU that the cgroup allows, at least 2, but fewer if"
        " the cgroup's memory limit is too low for them (160 MiB per worker).",
    )
    worker_class: str = Field(
        default="uvicorn_worker.UvicornWorker",
        description="Worker class of the process manager. `uvicorn_worker.UvicornH11Worker` is for PyPy; `asgi` is"
        " the ASGI worker of the process manager itself, if it has one.",
    )
    worker_timeout_seconds: WholeWait = Field(
        default=30,
        description="Time after which a worker that has not reported to the process manager is killed and replaced.",
    )
    graceful_timeout_seconds: WholeWait = Field(
        default=30,
        description="How long open requests may run after a stop signal before they are aborted. Keep the value below"
        " the 40 s after which the deployment kills the service.",
    )
    keepalive_seconds: WholeWait = Field(
        default=5,
        description="How long an idle HTTP connection stays open, also while a worker stops. A proxy in front of the"
        " service must close its idle connections to the service earlier.",
    )
    max_requests: int = Field(
        default=0,
        ge=0,
        le=1000 * MAX_COUNT,
        description="Number of requests after which a worker is replaced, plus a random number up to a tenth of it. 0:"
        " never. With the worker classes of uvicorn, the worker first finishes its open requests.",
    )
    forwarded_allow_ips: StrList = Field(
        default=("127.0.0.1", "::1"),
        description="Addresses and networks of the proxies whose `X-Forwarded-*` headers are trusted. Host names, and"
        " networks that cover all addresses, are refused.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO",
        description="Lowest severity of the messages that are logged.",
    )
    log_format: Literal["console", "json"] = Field(
        default="json",
        description="Format of the log. `console` is for people and has colors in a terminal; `FORCE_COLOR` forces"
        " them, `NO_COLOR` turns them off.",
    )

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def ignore_case(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        return value.upper() if info.field_name == "log_level" else value.lower()

    @field_validator("unix_socket")
    @classmethod
    def check_socket(cls, value: Path | None) -> Path | None:
        if value is not None and len(os.fsencode(value)) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"must be a path of at most {MAX_SOCKET_PATH_BYTES} bytes")
        if value is not None and os.path.isdir(value):
            raise ValueError("must be the path of the socket file, not a folder")
        return value

    @field_validator("worker_class")
    @classmethod
    def check_worker(cls, value: str) -> str:
        known = WORKER_CLASSES + ((GUNICORN_WORKER_CLASS,) if importlib.util.find_spec("gunicorn") else ())
        if value not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return value

    @field_validator("forwarded_allow_ips")
    @classmethod
    def require_named_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in value:
            raise ValueError(
                "must list the addresses of the proxies instead of *, which would let any client forge its address;"
                " a proxy that connects through UNIX_SOCKET needs no entry"
            )
        return normalize_proxies(value)
