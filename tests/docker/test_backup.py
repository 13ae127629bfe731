"""Backups, and databases that are restored and moved."""

import re

from tests.support.containers import PASSWORD, RECOVERY_SECONDS, Stack, load, run_docker
from tests.support.serving import wait_until
from tests.support.stored_files import READ_FILE, STORE_FILE


def test_restore_recovers_deleted_rows_and_files(stack: Stack, manual: dict[str, list[str]]) -> None:
    write, restore = manual["Backup and restore"]
    email = stack.create_account()
    headers = stack.sign_in(email)
    stack.add_todo(headers, "precious")
    file_id = stack.execute("app", "python", "-c", STORE_FILE, "as precious").strip()
    output = stack.follow(write).split("docker compose logs")[0]
    (name,) = re.findall(r"Done: /backups/(\S+),", output)[:1]
    (folder,) = re.findall(r"Done: /backups/files/(\S+)", output)[:1]

    stack.delete_account(headers)
    form = {"grant_type": "password", "username": email, "password": PASSWORD}
    gone = stack.request_with_retries("POST", "/api/v1/auth/token", data=form).status_code
    stack.execute("app", "sh", "-c", "rm -r /files/*")
    # Wait for a failed backup of the files: the next one starts only after a minute, so none runs during the restore.
    wait_until(lambda: backup_of_the_files_fails(stack), RECOVERY_SECONDS, lambda: "the backup of the files fails")
    stack.follow(restore.replace("FILE", name).replace("FOLDER", folder))
    stack.wait_until_ready()

    assert gone == 400
    assert stack.execute("app", "python", "-c", READ_FILE, file_id).strip() == "as precious"
    assert (stack.project.path / "backups" / name).stat().st_size > 1000
    assert stack.list_todos(stack.sign_in(email)) == {"precious"}


def backup_of_the_files_fails(stack: Stack) -> bool:
    # The next backup of the files starts when this marker is absent. Remove the marker on every call, because a backup
    # that began before the files were deleted creates it again.
    stack.execute("backup", "rm", "-f", "/backups/.files-done")
    return "has no files, but the last backup" in stack.compose("logs", "backup")


def test_truncated_backup_is_refused(stack: Stack, user: dict[str, str]) -> None:
    cut = "python -m app db backup /backups/cut.dump && truncate --size=-1 /backups/cut.dump"
    stack.execute("backup", "sh", "-c", cut)
    before = stack.list_todos(user)

    output = stack.execute(
        "backup", "sh", "-c", "python -m app db restore /backups/cut.dump --yes || echo refused with $?", check=False
    )

    assert "refused with 1" in output
    assert stack.list_todos(user) == before


def test_backups_are_periodic_and_an_overdue_one_is_unhealthy(stack: Stack) -> None:
    stack.execute("backup", "sh", "-c", "touch --date=2020-01-01 /backups/*; ./backup.sh health && exit 1 || exit 0")

    def is_healthy() -> bool:
        return "yes" in stack.execute("backup", "sh", "-c", "./backup.sh health && echo yes", check=False)

    def has_files_of_it() -> bool:
        newest = stack.execute("backup", "sh", "-c", "ls -t --directory /backups/*.dump /backups/.files-done")
        return newest.startswith("/backups/.files-done")

    wait_until(is_healthy, 60, lambda: "a new backup is there")
    wait_until(has_files_of_it, 60, lambda: "the files are backed up after the database")


def test_failed_backup_ends_with_an_error(stack: Stack) -> None:
    output = stack.execute("backup", "sh", "-c", "DATABASE_NAME=none python -m app db backup /backups; echo =$?")

    assert "=1" in output
    assert "Traceback" not in output


def test_data_outlives_the_containers(stack: Stack) -> None:
    email = stack.create_account()
    stack.add_todo(stack.sign_in(email), "lasting")

    stack.compose("down")
    stack.up()

    assert stack.list_todos(stack.sign_in(email)) == {"lasting"}


def test_database_moves_to_a_new_server(stack: Stack, manual: dict[str, list[str]]) -> None:
    reach, minor, leave, arrive = manual["PostgreSQL"]
    email = stack.create_account()
    stack.add_todo(stack.sign_in(email), "moved")

    stack.follow(reach, typed={"service=#": "\\q\n"})
    # The local image is used, because there may be no registry to pull from.
    stack.follow(minor.replace("docker compose pull db\n", ""))
    stack.follow(leave)
    volumes = run_docker("volume", "ls", "--quiet")
    stack.follow(arrive)
    stack.wait_until_ready()

    assert f"{stack.project.path.name}_database" not in volumes
    assert stack.list_todos(stack.sign_in(email)) == {"moved"}


def test_sqlite_serves_from_three_instances_and_is_backed_up_and_restored(sqlite: Stack) -> None:
    email = sqlite.create_account()
    sqlite.up("--scale", "app=3", "--no-recreate")
    headers = sqlite.sign_in(email)
    with load(sqlite, headers) as clients:
        clients.wait_for_answers(60)
    file_id = sqlite.execute("app", "python", "-c", STORE_FILE, "stored").strip()
    sqlite.execute("backup", "python", "-m", "app", "db", "backup", "/backups/test")
    sqlite.delete_account(headers)

    sqlite.execute("backup", "python", "-m", "app", "db", "restore", "/backups/test", "--yes")
    sqlite.compose("down")
    sqlite.up()

    # Stored files are in a volume, which outlives the containers.
    assert sqlite.execute("app", "python", "-c", READ_FILE, file_id).strip() == "stored"
    assert clients.failures == []
    assert clients.acknowledged <= sqlite.list_todos(sqlite.sign_in(email))
