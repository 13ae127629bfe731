"""The service's tests of its object stores, against a real S3 server: SeaweedFS, on loopback."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import person_environment, run_program
from tests.support.serving import find_free_port, wait_until
from tests.support.template import ROOT, SERVICE

PROGRAMS = Path(sys.executable).parent
TIMEOUT_SECONDS = 300
KEY = {"accessKey": "test-key", "secretKey": "test-secret"}
IDENTITIES = {"identities": [{"name": "test", "credentials": [KEY], "actions": ["Admin", "Read", "Write", "List"]}]}
PORTS = ("master", "volume", "filer", "s3", "admin")


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "s3.json").write_text(json.dumps(IDENTITIES), encoding="utf-8")
    ports = {f"{part}.port{kind}": find_free_port() for part in PORTS for kind in ("", ".grpc")}
    command = [
        *(str(PROGRAMS / "weed"), "mini", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.config=s3.json"),
        *(f"-{name}={port}" for name, port in ports.items()),
        *("-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
    ]
    url = f"http://127.0.0.1:{ports['s3.port']}"
    log = tmp_path / "weed.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=person_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: answers(url) or process.poll() is not None, TIMEOUT_SECONDS, log.read_text)
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        # SIGKILL: after SIGTERM, SeaweedFS waits half a minute for its own components.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for port in ports.values():
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108  # SeaweedFS puts its sockets there, and takes no other folder
                socket.unlink()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310  # the URL is the loopback server of this test
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def test_s3_bucket_passes_the_tests_of_the_object_stores(endpoint: str) -> None:
    environment = person_environment(
        PYTHONDONTWRITEBYTECODE="1",
        TEST_S3_ENDPOINT=endpoint,
        TEST_S3_BUCKET="files",
        TEST_S3_ACCESS_KEY_ID=KEY["accessKey"],
        TEST_S3_SECRET_ACCESS_KEY=KEY["secretKey"],
        # The tests of the object stores use no database; with SQLite, no database server is started.
        TEST_DATABASE_URL="sqlite://",
    )
    pytest_options = ["-p", "no:cacheprovider", "-q", "-k", "s3", "tests/core/storage/test_storage.py"]

    done = run_program(
        [sys.executable, "-m", "pytest", *pytest_options], TIMEOUT_SECONDS, folder=ROOT / SERVICE, env=environment
    )

    assert done.returncode == 0, done.stdout[-20000:]
    assert re.search(r"(?m)^\d\d passed, \d+ deselected", done.stdout)
