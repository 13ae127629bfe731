"""Behaviour specific to gunicorn."""

from pathlib import Path

import pytest

from tests.support.servers import START
from tests.support.sockets import FORWARDED, listen_tcp, listen_unix, run_inherited, see_client

pytestmark = pytest.mark.processes


def test_forwarded_headers_are_ignored_when_unix_and_tcp_sockets_are_combined(
    empty_url: str, socket_folder: Path
) -> None:
    with (
        listen_unix(socket_folder / "app.sock") as private,
        listen_tcp() as public,
        run_inherited(empty_url, START, private, public, trusted="192.0.2.1") as server,
    ):
        assert see_client(server, **FORWARDED) == "127.0.0.1"
