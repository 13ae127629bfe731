"""An update to other answers gives the project that these answers generate."""

from pathlib import Path

import pytest

from tests.update.teams import Team, bake_team, run_git

VERSION = "v1.0.0"
CHANGES = {
    "deployment": {"deployment": "both"},
    "server": {"deployment": "vm"},
    "pages": {"web_pages": "yes"},
    "weather": {"weather_example": "yes"},
    "supervisor": {"process_manager": "supervisor"},
    "circus": {"process_manager": "circus"},
    "gitlab": {"ci": "gitlab"},
    "no-ci": {"ci": "none"},
    "license": {"license": "Apache-2.0"},
    "database": {"database": "postgresql"},
    "python": {"python_version": "3.14"},
    "texts": {"project_name": 'Ada\'s "new" {{ service }}', "description": "#% if $HOME `id`"},
    "several": {"deployment": "both", "web_pages": "yes", "weather_example": "yes", "database": "postgresql"},
}


def quote(answers: dict[str, str]) -> str:
    return " ".join("{}='{}'".format(name, value.replace("'", "'\\''")) for name, value in answers.items())


def as_template(answers: dict[str, str]) -> dict[str, str]:
    """Return the answers as the command line of cookiecutter takes them."""
    quoted = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in answers.items()}
    return {name: f'{{{{ "{value}" }}}}' for name, value in quoted.items()}


@pytest.mark.parametrize("answers", CHANGES.values(), ids=CHANGES)
def test_changed_answer_gives_the_project_of_a_fresh_bake(
    answers: dict[str, str], team: Team, repository: Path, tmp_path: Path
) -> None:
    before = team.record

    output = team.update("--answers", quote(answers))

    changed = as_template(answers) if "project_name" in answers else answers
    fresh = bake_team(repository, tmp_path / "fresh", VERSION, **{"database": "sqlite"} | changed)
    assert {**team.tracked(), ".cruft.json": b""} == {**fresh.tracked(), ".cruft.json": b""}
    assert team.record == fresh.record
    assert team.record["commit"] == before["commit"], "the version stays"
    assert "Changed answers: " in output
    assert "Notes of the template" not in output


def test_changing_answers_back_and_forth_keeps_migrations(team: Team, repository: Path, tmp_path: Path) -> None:
    migration = "migrations/versions/0005_weather_reports.py"
    team.update("--answers", "weather_example=yes")
    team.commit()
    content = team.read(migration)

    output = team.update("--answers", "weather_example=no")

    assert team.read(migration) == content
    assert "they are kept, because databases may have run them:\n  " + migration in output
    assert "make migrate" in output
    assert not (team.path / "app" / "weather").exists()
    team.commit()
    team.update("--answers", "weather_example=yes")
    fresh = bake_team(repository, tmp_path / "fresh", VERSION, database="sqlite", weather_example="yes")
    assert {**team.tracked(), ".cruft.json": b""} == {**fresh.tracked(), ".cruft.json": b""}


def test_optional_migration_after_own_ones_is_named_with_the_command(team: Team) -> None:
    team.write("migrations/versions/1001_notes.py", 'revision = "1001"\ndown_revision = "0004"\n')
    team.commit()

    assert ".venv/bin/python -m app db reparent 0005\n" in team.update("--answers", "weather_example=yes")


def test_new_containers_need_their_secrets(repository: Path, tmp_path: Path) -> None:
    team = bake_team(repository, tmp_path, VERSION, database="postgresql", deployment="vm")

    output = team.update("--answers", "deployment=both")

    assert "Run deploy/docker/secrets.sh: it generates the secrets of the containers" in output
    assert not (team.path / "secrets" / "database_password").exists()
    team.git("check-ignore", "secrets/database_password")


def test_changed_example_of_settings_leaves_own_settings(team: Team) -> None:
    settings = team.read(".env")

    output = team.update("--answers", "weather_example=yes")

    assert "Compare your .env with .env.example" in output
    assert team.read(".env") == settings


def test_answer_and_version_change_together(team: Team, repository: Path) -> None:
    output = team.update("--version", "v1.1.0", "--answers", "region=us")

    assert team.record["commit"] == run_git(repository, "rev-parse", "v1.1.0")
    assert "In the region us." in team.read("README.md")
    assert "New options, with their defaults" not in output, "the answer is no default"


def test_same_answer_is_no_change(team: Team) -> None:
    assert team.update("--answers", "database=sqlite").startswith("Already up to date")
