"""The process managers that the other chapters do without: supervisor and circus."""

import json

from tests.support.containers import (
    RECOVERY_SECONDS,
    Stack,
    kill_a_worker,
    kill_the_application,
    list_workers,
    load,
    run_docker,
)
from tests.support.serving import wait_until


def test_other_process_managers_replace_a_worker_and_lose_no_write(lite: Stack) -> None:
    headers = lite.sign_up()
    containers, workers = lite.list_containers("app"), list_workers(lite)

    with load(lite, headers) as clients:
        clients.wait_for_answers(20)
        kill_a_worker(lite)
        wait_until(
            lambda: len(list_workers(lite) - {min(workers)}) == len(workers), RECOVERY_SECONDS, lambda: "a new worker"
        )
        clients.wait_for_answers(20)

    assert len(workers) >= 2
    assert lite.list_containers("app") == containers
    assert clients.acknowledged <= lite.list_todos(headers)


def test_other_process_managers_are_restarted_when_they_are_killed(lite: Stack) -> None:
    headers = lite.sign_up()
    (container,) = lite.list_containers("app")
    restarts = lite.inspect(container)["RestartCount"]

    kill_the_application(lite)

    wait_until(lambda: lite.inspect(container)["RestartCount"] > restarts, RECOVERY_SECONDS, lambda: "a restart")
    lite.wait_until_it_answers()
    assert lite.add_todo(headers).status_code == 201


def test_other_process_managers_stop_gracefully(lite: Stack) -> None:
    (container,) = lite.list_containers("app")

    lite.compose("stop", "app")
    state = lite.inspect(container)["State"]
    lite.up()
    lite.wait_until_it_answers()

    assert state["ExitCode"] == 0


def test_update_under_other_process_managers_fails_no_request(lite: Stack, manual: dict[str, list[str]]) -> None:
    (renew,) = manual["Security updates"]
    headers = lite.sign_up()
    before = lite.list_containers("app")

    with load(lite, headers) as clients:
        clients.wait_for_answers(20)
        # Of the images that are there.
        lite.follow(renew.replace(" --pull --no-cache", ""))
        clients.wait_for_answers(20)

    assert clients.failures == []
    assert clients.acknowledged <= lite.list_todos(headers)
    assert not set(before) & set(lite.list_containers("app"))


def test_other_process_managers_log_json_and_add_up_metrics(lite: Stack) -> None:
    before = count_deletions(lite)
    asked = [lite.request("DELETE", "/api/v1/users/me").status_code for _ in range(10)]
    wait_until(lambda: count_deletions(lite) == before + 10, RECOVERY_SECONDS, lambda: "all are counted")

    counts = [count_deletions(lite) for _ in range(6)]
    lines = run_docker("logs", lite.list_containers("app")[0]).splitlines()

    assert asked == [401] * 10
    assert counts == [before + 10] * 6
    assert [json.loads(line) for line in lines]


def count_deletions(stack: Stack) -> float:
    """How many requests to delete something were counted, as one of the workers tells."""
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/metrics', timeout=30).read().decode())"
    lines = stack.execute("app", "python", "-c", code).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith('http_requests_total{method="DELETE"'))
