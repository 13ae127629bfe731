"""The process managers supervisor and circus; most other test modules of this folder use gunicorn."""

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


def test_other_process_managers_replace_a_worker_and_lose_no_write(sqlite: Stack) -> None:
    headers = sqlite.sign_up()
    containers, workers = sqlite.list_containers("app"), list_workers(sqlite)

    with load(sqlite, headers) as clients:
        clients.wait_for_answers(20)
        kill_a_worker(sqlite)
        wait_until(
            lambda: len(list_workers(sqlite) - {min(workers)}) == len(workers),
            RECOVERY_SECONDS,
            lambda: "a new worker",
        )
        clients.wait_for_answers(20)

    assert len(workers) >= 2
    assert sqlite.list_containers("app") == containers
    assert clients.acknowledged <= sqlite.list_todos(headers)


def test_other_process_managers_are_restarted_when_they_are_killed(sqlite: Stack) -> None:
    headers = sqlite.sign_up()
    (container,) = sqlite.list_containers("app")
    restarts = sqlite.inspect(container)["RestartCount"]

    kill_the_application(sqlite)

    wait_until(lambda: sqlite.inspect(container)["RestartCount"] > restarts, RECOVERY_SECONDS, lambda: "a restart")
    sqlite.wait_until_ready()
    assert sqlite.add_todo(headers).status_code == 201


def test_other_process_managers_stop_gracefully(sqlite: Stack) -> None:
    (container,) = sqlite.list_containers("app")

    sqlite.compose("stop", "app")
    state = sqlite.inspect(container)["State"]
    sqlite.up()
    sqlite.wait_until_ready()

    assert state["ExitCode"] == 0


def test_update_under_other_process_managers_fails_no_request(sqlite: Stack, manual: dict[str, list[str]]) -> None:
    (renew,) = manual["Security updates"]
    headers = sqlite.sign_up()
    before = sqlite.list_containers("app")

    with load(sqlite, headers) as clients:
        clients.wait_for_answers(20)
        # The local images are used, because there may be no registry to pull from.
        sqlite.follow(renew.replace(" --pull --no-cache", ""))
        clients.wait_for_answers(20)

    assert clients.failures == []
    assert clients.acknowledged <= sqlite.list_todos(headers)
    assert not set(before) & set(sqlite.list_containers("app"))


def test_other_process_managers_log_json_and_add_up_metrics(sqlite: Stack) -> None:
    before = count_deletions(sqlite)
    asked = [sqlite.request("DELETE", "/api/v1/users/me").status_code for _ in range(10)]
    wait_until(lambda: count_deletions(sqlite) == before + 10, RECOVERY_SECONDS, lambda: "all are counted")

    counts = [count_deletions(sqlite) for _ in range(6)]
    lines = run_docker("logs", sqlite.list_containers("app")[0]).splitlines()

    assert asked == [401] * 10
    assert counts == [before + 10] * 6
    assert [json.loads(line) for line in lines]


def count_deletions(stack: Stack) -> float:
    """Return the number of DELETE requests in the metrics: one worker answers with the counts of all workers."""
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/metrics', timeout=30).read().decode())"
    lines = stack.execute("app", "python", "-c", code).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith('http_requests_total{method="DELETE"'))
