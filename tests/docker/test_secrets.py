"""Secrets and certificates: made, replaced, and rotated."""

import hashlib
import re
import socket
import ssl
import subprocess
from pathlib import Path

from tests.support.containers import DOMAIN, RECOVERY_SECONDS, Stack, unverified
from tests.support.projects import Bake, BakedProject
from tests.support.serving import wait_until


def test_missing_secrets_are_created_and_existing_ones_are_kept(bake: Bake) -> None:
    project: BakedProject = bake()
    names = project.secrets - {".env"}
    kept = hashlib.sha256(project.read("secrets/database_password").encode()).hexdigest()
    (project.path / "secrets" / "secret_key").unlink()

    project.run(["deploy/docker/secrets.sh"])

    assert {name for name in names if re.fullmatch("[0-9a-f]{64}", project.read(name))} == names
    assert hashlib.sha256(project.read("secrets/database_password").encode()).hexdigest() == kept
    assert (project.path / "secrets").stat().st_mode & 0o777 == 0o700


def test_rotating_the_signing_key_and_the_database_password_signs_nobody_out(
    stack: Stack, manual: dict[str, list[str]]
) -> None:
    new_key, new_password = manual["Secrets"]
    headers = stack.sign_up()
    before = {name: stack.project.read(f"secrets/{name}") for name in ("secret_key", "database_password")}

    stack.follow(new_key)
    kept = stack.request("GET", "/api/v1/users/me", headers=headers).status_code
    newer = stack.sign_up()
    stack.follow(new_password)

    assert kept == 200
    assert not [name for name, secret in before.items() if stack.project.read(f"secrets/{name}") == secret]
    # The last update ran without the fallback, so tokens signed with the old key are invalid.
    assert stack.request("GET", "/api/v1/users/me", headers=headers).status_code == 401
    assert stack.add_todo(newer).status_code == 201
    assert "Done: " in stack.execute("backup", "python", "-m", "app", "db", "backup", "/backups")


def test_new_certificates_are_used_without_a_restart(stack: Stack, manual: dict[str, list[str]]) -> None:
    (replace,) = manual["Certificate"]
    folder = stack.project.path
    try:
        for _ in range(2):
            given = make_certificate(folder)
            stack.follow(replace)
            wait_for_certificate(stack, given)

        # A certificate that does not belong to the key is not used.
        make_certificate(folder)
        stack.follow("cp fullchain.pem secrets/tls/")
        wait_for_the_next_check(stack)
        assert served_certificate(stack) == given
    finally:
        for name in ("privkey.pem", "fullchain.pem", "secrets/tls/privkey.pem", "secrets/tls/fullchain.pem"):
            (folder / name).unlink(missing_ok=True)


def wait_for_certificate(stack: Stack, given: bytes) -> None:
    wait_until(lambda: served_certificate(stack) == given, RECOVERY_SECONDS, lambda: "the given certificate is served")


def wait_for_the_next_check(stack: Stack) -> None:
    """Wait until proxy.sh has completed a whole check for new certificates and instances."""
    heartbeats: set[str] = set()

    def has_checked() -> bool:
        heartbeats.add(stack.execute("proxy", "stat", "--format=%y", "/run/nginx/heartbeat"))
        return len(heartbeats) > 2

    wait_until(has_checked, RECOVERY_SECONDS, lambda: "two more checks")


def make_certificate(folder: Path) -> bytes:
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={DOMAIN}", "-days", "1"]
    files = ["-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")]
    subprocess.run([*make, *files], check=True, capture_output=True, timeout=60)
    return ssl.PEM_cert_to_DER_cert((folder / "fullchain.pem").read_text(encoding="utf-8"))


def served_certificate(stack: Stack) -> bytes | None:
    with (
        socket.create_connection(("127.0.0.1", stack.https_port), timeout=10) as plain,
        unverified().wrap_socket(plain, server_hostname=DOMAIN) as connection,
    ):
        return connection.getpeercert(binary_form=True)
