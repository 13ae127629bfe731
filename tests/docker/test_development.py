"""The containers with the development settings of compose.override.yaml."""

from uuid import uuid4

import httpx2

from tests.support.containers import ADMIN, PASSWORD, RECOVERY_SECONDS, Stack
from tests.support.projects import Bake
from tests.support.serving import wait_until


def test_development_reloads_changed_code_and_writes_mail_to_files(bake: Bake) -> None:
    stack = Stack(bake(project_slug=f"dev-{uuid4().hex[:8]}"), production=False)
    router = stack.project.path / "app" / "health" / "router.py"
    try:
        stack.up("--build")
        docs = httpx2.get(f"http://127.0.0.1:{stack.port}/docs", timeout=30)
        router.write_text(router.read_text(encoding="utf-8").replace('"/health"', '"/health/new"'), encoding="utf-8")

        def is_reloaded() -> bool:
            try:
                return httpx2.get(f"http://127.0.0.1:{stack.port}/health/new", timeout=30).status_code == 200
            except httpx2.HTTPError:
                return False

        assert docs.status_code == 200
        wait_until(is_reloaded, 60, lambda: "the changed code answers")
        account = {"email": ADMIN, "password": PASSWORD}
        api = f"http://127.0.0.1:{stack.port}/api/v1"
        httpx2.post(f"{api}/users", json=account, timeout=30).raise_for_status()
        httpx2.post(f"{api}/auth/password/forgot", json={"email": ADMIN}, timeout=30).raise_for_status()
        wait_until(
            lambda: ADMIN in stack.execute("app", "sh", "-c", "cat /tmp/mail/*", check=False),
            RECOVERY_SECONDS,
            lambda: "a message",
        )
    finally:
        stack.down()
