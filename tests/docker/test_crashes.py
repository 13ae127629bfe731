"""Crashes, readiness and shutdown."""

import time
from collections.abc import Callable

import pytest

from tests.support.containers import RECOVERY_SECONDS, Stack, kill_a_worker, kill_the_application, load
from tests.support.serving import wait_until


def kill_the_database(stack: Stack) -> None:
    stack.kill(stack.list_containers("db")[0])


@pytest.mark.parametrize("crash", [kill_a_worker, kill_the_application, kill_the_database])
def test_no_acknowledged_write_is_lost_in_a_crash(
    stack: Stack, user: dict[str, str], crash: Callable[[Stack], None]
) -> None:
    with load(stack, user) as clients:
        clients.wait_for_answers(20)
        crash(stack)
        clients.wait_for_answers(20)

    stack.wait_until_ready()
    assert clients.acknowledged <= stack.list_todos(user)


def test_readiness_follows_the_state_of_the_database(stack: Stack, user: dict[str, str]) -> None:
    probe = ["python", "-I", "healthcheck.py"]
    ready = stack.execute("app", *probe)

    def is_refused() -> bool:
        answer = stack.request("GET", "/api/v1/todos", headers=user)
        # The application's responses have a request id; nginx's own responses have none.
        return answer.status_code == 503 and "x-request-id" in answer.headers

    # `compose kill` counts as a deliberate stop; after a crash the engine would restart the database at once.
    stack.compose("kill", "--signal", "KILL", "db")
    try:
        wait_until(
            lambda: "503" in stack.execute("app", *probe, check=False), RECOVERY_SECONDS, lambda: "it is not ready"
        )
        wait_until(is_refused, RECOVERY_SECONDS, lambda: "the application refuses")
    finally:
        stack.compose("start", "db")

    assert '"ready"' in ready
    wait_until(
        lambda: '"ready"' in stack.execute("app", *probe, check=False), RECOVERY_SECONDS, lambda: "it is ready again"
    )


def test_application_stops_gracefully(stack: Stack) -> None:
    (container,) = stack.list_containers("app")
    started = time.monotonic()

    stack.compose("stop", "app")
    try:
        stopped = time.monotonic()
        state = stack.inspect(container)["State"]
        answer = stack.request("GET", "/api/v1/users/me")
    finally:
        stack.up()
        stack.wait_until_ready()

    assert stopped - started < 20
    assert state["ExitCode"] == 0
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
