import logging.config
import os
import sys
from typing import Any

import structlog
from asgi_correlation_id import correlation_id
from structlog.typing import EventDict, WrappedLogger

from app.core.config.server import ServerSettings


def add_request_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if request_id := correlation_id.get():
        event["request_id"] = request_id
    return event


def drop_colors(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Drop the colored copy of the message that uvicorn adds to its log records."""
    event.pop("color_message", None)
    return event


SHARED_PROCESSORS: list[Any] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    drop_colors,
    add_request_id,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


def shows_colors() -> bool:
    """Return whether to log in colors: by default on a terminal; NO_COLOR means never, FORCE_COLOR always."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (sys.stdout.isatty() and os.environ.get("TERM") != "dumb")


def logging_config(settings: ServerSettings) -> dict[str, Any]:
    """Return the configuration for `logging.config`: one format for the service, its server and the libraries."""
    if settings.log_format == "json":
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        renderers = [structlog.dev.ConsoleRenderer(colors=shows_colors(), exception_formatter=plain)]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "structured": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": SHARED_PROCESSORS,
                "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
            }
        },
        "handlers": {
            "stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "structured"}
        },
        "root": {"handlers": ["stdout"], "level": settings.log_level},
        "loggers": {
            # Remove the servers' own handlers: the messages propagate to the handler of the root logger.
            "uvicorn": {"handlers": [], "propagate": True, "level": "NOTSET"},
            "uvicorn.error": {"handlers": [], "propagate": True, "level": "NOTSET"},
            "gunicorn.error": {"handlers": [], "propagate": True, "level": "NOTSET"},
            # Disabled: these loggers log query strings, which may hold secrets. AccessLogMiddleware replaces them.
            "uvicorn.access": {"handlers": [], "propagate": False, "level": "CRITICAL"},
            "gunicorn.access": {"handlers": [], "propagate": False, "level": "CRITICAL"},
            # Disabled: these loggers log URLs and headers of outgoing requests, which may hold secrets.
            "httpx2": {"handlers": [], "propagate": False, "level": "CRITICAL"},
            "httpcore2": {"handlers": [], "propagate": False, "level": "CRITICAL"},
            # SQLAlchemy sets this level for "sqlalchemy", the parent of its loggers. FairPool has another parent.
            "app.core.db.driver.pool.FairPool": {"level": "WARNING"},
            # Suppress the warning about each invalid X-Request-ID.
            "asgi_correlation_id": {"level": "ERROR"},
            # Suppress the warning about each malformed upload, which the access log shows as a 422.
            "python_multipart": {"level": "ERROR"},
            "alembic": {"level": "WARNING" if settings.log_level == "INFO" else "NOTSET"},
        },
    }


def configure_logging(settings: ServerSettings) -> None:
    logging.config.dictConfig(logging_config(settings))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *SHARED_PROCESSORS,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
