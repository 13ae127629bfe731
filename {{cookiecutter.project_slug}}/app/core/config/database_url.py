import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

DRIVERS = {"postgresql": "psycopg", "sqlite": "aiosqlite"}
DRIVER_MODULES = DRIVERS
# Parameters of libpq whose value is itself a secret rather than the path of a file with a secret. `password` is not
# listed, because `_hide_password` moves it out of the query.
SECRET_PARAMETERS = frozenset({"oauth_client_secret", "scram_client_key", "scram_server_key", "sslpassword"})


def parse_url(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # The parser's message may quote a part of the password.
        raise ValueError(
            "must be a URL such as postgresql://user:password@host:5432/name, with special characters percent-encoded"
        ) from None
    backend = "postgresql" if url.drivername == "postgres" else url.get_backend_name()
    if backend not in DRIVERS:
        raise ValueError("must start with postgresql:// or sqlite:///")
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("must name a file: an in-memory database is lost when its connection closes")
    return _hide_password(url.set(drivername=f"{backend}+{DRIVERS[backend]}"))


def _hide_password(url: URL) -> URL:
    """Move user and password from the query to the URL's attributes: SQLAlchemy prints the query, but not `password`.

    Raises ValueError for other secrets in the query.
    """
    if secret := SECRET_PARAMETERS & url.query.keys():
        raise ValueError(
            f"must not have {', '.join(sorted(secret))} in the query: use a service file of libpq (PGSERVICEFILE)"
        )
    # As in the driver, values in the query take precedence, and the last of several values counts.
    sent = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    user, password = sent.get("user", url.username), sent.get("password", url.password)
    return url.difference_update_query(["user", "password"]).set(username=user, password=password)


def host_parts(host: str, query: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `URL.create` for a server, or for the folder of its unix socket."""
    others = {name: value for name, value in query.items() if name != "host"}
    return {"query": {**others, "host": host}} if host.startswith("/") else {"host": host, "query": others}


def check_driver(url: URL) -> None:
    driver = DRIVER_MODULES[url.get_backend_name()]
    if importlib.util.find_spec(driver) is None:
        raise ValueError(
            f"needs the driver {driver}, which is not installed: add it to the dependencies in pyproject.toml"
        )


def looks_like_path(name: str) -> bool:
    return "/" in name or "\\" in name or bool(Path(name).suffix)
