"""The make targets, the documents and the CI pipelines of this repository."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support import nasty
from tests.support.programs import UV, person_environment
from tests.support.projects import Bake
from tests.support.servers import SERVERS
from tests.support.serving import serve
from tests.support.template import CHOICES, CONTEXT, ROOT, SERVICE, list_files

# Each command in a document, and the file that runs it.
RUN_BY = {
    "make demo": "tests/test_template.py",
    "make bake": "tests/test_template.py",
    "make check": ".ci/run",
    "make test": ".ci/run",
    '.uv/bin/uv run pytest -n auto -m "not slow"': "tests/test_template.py",
}


def copy_repository(folder: Path) -> Path:
    for path in list_files("."):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_repository(tmp_path_factory.mktemp(nasty.FOLDER))


@pytest.fixture
def clone_for_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_repository(tmp_path_factory.mktemp(nasty.DATABASE_FOLDER))


def test_every_command_of_the_documents_is_run() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"))
        commands = "".join(blocks).splitlines()

        assert commands
        for command in commands:
            assert command in (ROOT / RUN_BY[command]).read_text(encoding="utf-8")


def test_every_page_of_the_manual_with_commands_is_followed_by_a_test() -> None:
    pages = (ROOT / SERVICE / "docs").glob("*.md")
    with_commands = {
        page.name for page in pages if re.search("(?m)^```(?:sh|console)$", page.read_text(encoding="utf-8"))
    }

    # Tested by tests/docker, test_without_driver.py, test_service.py, tests/resources and tests/vm, in this order.
    assert with_commands == {"containers.md", "database.md", "developing.md", "features.md", "server.md"}


def test_links_of_the_documents_resolve() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), target


def list_layout() -> Iterator[str]:
    """Yield each path of the layout in CONTRIBUTING.md; folders end in a slash."""
    layout = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("\n## Layout\n")[2]
    folders: list[str] = []
    for line in layout.split("```")[1].strip().splitlines():
        folders[(len(line) - len(line.lstrip())) // 2 :] = line.split()[:1]
        yield "".join(folders)


def test_layout_in_contributing_matches_the_tree() -> None:
    shown = list(list_layout())
    # The layout need not list all files of the root folder.
    opened = {f"{Path(name).parent}/" for name in shown} - {"./"}

    assert [name for name in shown if not (ROOT / name).exists() or name.endswith("/") != (ROOT / name).is_dir()] == []
    assert {"tests/", "tests/support/"} <= opened
    for folder in opened:
        inside = {path.relative_to(folder).parts for path in list_files(folder) if path.name != "__init__.py"}
        names = {f"{folder}{name}{'/' if rest else ''}" for name, *rest in inside}

        assert {name for name in shown if f"{Path(name).parent}/" == folder} == names


# In the second case the hooks run in another order: pytest loads the conftest.py of a folder on its command line before
# the collection.
@pytest.mark.parametrize("folders", [[], ["tests/docker", "tests/vm"]], ids=["all", "given"])
def test_chapters_share_each_server_and_the_containers(tmp_path: Path, folders: list[str]) -> None:
    engine = tmp_path / "docker"
    engine.write_text("#!/bin/sh\n", encoding="utf-8")
    engine.chmod(0o755)
    environment = person_environment(TEST_MACHINE_COMMANDS=str(tmp_path))
    plan = [sys.executable, "-m", "pytest", "--setup-plan", "-p", "no:cacheprovider", "-m", "slow", *folders]

    done = subprocess.run(
        plan,
        cwd=ROOT,
        env=environment | {"PATH": f"{tmp_path}:{environment['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )

    set_up = re.findall(r"(?m)^SETUP +S (stack|sqlite|server) [^\[\n]*(.*)$", done.stdout)
    servers = [("server", f"[{server!r}]") for server in SERVERS]
    assert set_up == [("stack", ""), ("sqlite", "['supervisor']"), ("sqlite", "['circus']"), *servers]


def test_pictures_are_few_small_and_shown() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = [path for path in list_files(".") if path.suffix == ".png"]

    assert 0 < len(pictures) < 5
    for picture in pictures:
        assert f"]({picture.as_posix()})" in readme
        assert (ROOT / picture).stat().st_size < 40_000


def test_options_table_of_the_readme_is_that_of_the_template() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (`[a-z_`, ]+) \| ([^|]+) \|", readme)

    assert [option for row, _ in rows for option in re.findall(r"[a-z_]+", row)] == [
        option for option in CONTEXT if not option.startswith("_")
    ]
    assert {row.strip("`"): re.findall(r"`([^`]+)`", choices) for row, choices in rows if "`" in choices} == CHOICES


@pytest.mark.parametrize("folder", [".", SERVICE])
def test_actions_are_pinned_by_commit_and_keep_no_credentials(folder: str) -> None:
    text = (ROOT / folder / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    actions = re.findall(r"uses: (.+)", text)

    assert actions
    assert [action for action in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}  # v[0-9.]+", action)] == []
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")


def test_pipeline_bakes_every_combination_of_options_but_ci_and_license() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    matrix = jobs["bake"]["strategy"]["matrix"]
    (bake,) = (step["run"] for step in jobs["bake"]["steps"] if "make bake" in step.get("run", ""))

    answers = re.findall(r"(\w+)=\$\{\{ matrix\.(\w+) \}\}", bake)
    baked = {option: set(matrix[name]) for option, name in answers}
    assert baked == {option: set(choices) for option, choices in CHOICES.items() if option not in {"ci", "license"}}
    assert set(matrix) == {name for _, name in answers}
    assert math.prod(map(len, baked.values())) <= 256
    assert {"run": "bash .ci/run"} in jobs["test"]["steps"]


@pytest.mark.parametrize("setting", ["index-url = http://127.0.0.1:9/simple", "cert = /ca.pem", "proxy = [::1]:9", ""])
@pytest.mark.parametrize("verb", ["bake", "install"])
def test_failed_install_explains_that_uv_does_not_read_pip_conf(
    clone: Path, bake: Bake, tmp_path: Path, verb: str, setting: str
) -> None:
    file = tmp_path / "pip.conf" if setting else Path(os.devnull)  # With os.devnull, pip reads no file at all.
    file.write_text(f"[global]\n{setting}\n", encoding="utf-8")
    unreachable = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"}
    elsewhere = {"UV_PROJECT_ENVIRONMENT": str(tmp_path / "venv"), "UV_CACHE_DIR": str(tmp_path / "cache")}
    path = f"{Path(UV).parent}:{os.environ['PATH']}"
    environment = person_environment(PATH=path, **unreachable, **elsewhere, PIP_CONFIG_FILE=str(file))

    done = subprocess.run(
        ["make", verb],
        cwd=clone if verb == "bake" else bake().path,
        env={
            name: value
            for name, value in environment.items()
            if not name.startswith("PIP_") or name == "PIP_CONFIG_FILE"
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert ("uv does not read pip.conf. Set UV_DEFAULT_INDEX to its index-url" in done.stderr) == bool(setting)


@pytest.mark.slow
def test_demo_starts_within_a_minute_the_second_time_and_leaves_no_processes(clone_for_postgresql: Path) -> None:
    with serve(["make", "demo"], clone_for_postgresql) as server:
        server.stop(signal.SIGINT, group=True)

    with serve(["make", "demo"], clone_for_postgresql) as server:
        assert server.seconds_to_start < 60
        server.stop(signal.SIGKILL, group=False)


@pytest.mark.slow
def test_make_bake_asks_questions_and_accepts_answers(clone: Path) -> None:
    name = "Pet {{ Shop }} {% #% {#"
    questions = len([option for option in CONTEXT if not option.startswith("_")])

    subprocess.run(
        ["make", "bake"],
        cwd=clone,
        env=person_environment(HOME=str(clone)),
        input=name + "\n" * questions,
        text=True,
        check=True,
    )
    subprocess.run(
        ["make", "bake", "ANSWERS=--no-input database=sqlite"],
        cwd=clone,
        env=person_environment(HOME=str(clone)),
        check=True,
    )

    asked, given = (clone / ".bake" / slug / "pyproject.toml" for slug in ("pet-shop", "my-service"))
    assert tomllib.loads(asked.read_text(encoding="utf-8"))["tool"]["service"]["title"] == name
    assert "psycopg" in asked.read_text(encoding="utf-8")
    assert "aiosqlite" in given.read_text(encoding="utf-8")
