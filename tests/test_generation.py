import configparser
import json
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import yaml

from tests.support import nasty
from tests.support.projects import RECORD, Bake, BakedProject, run_cookiecutter
from tests.support.rendering import render_combinations
from tests.support.template import (
    CHOICES,
    LABELS,
    ROOT,
    SERVICE,
    VARIANTS,
    is_chosen,
    is_copied,
    list_files,
    read_sources,
)


def parse_shell_script(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


PARSERS: dict[str, Callable[[str], object]] = {
    ".toml": tomllib.loads,
    ".yml": yaml.safe_load,
    ".yaml": yaml.safe_load,
    ".json": json.loads,
    ".sh": parse_shell_script,
    ".ini": lambda text: configparser.ConfigParser().read_string(text),
    **dict.fromkeys(
        (".service", ".socket", ".target", ".timer"),
        lambda text: configparser.ConfigParser(strict=False, interpolation=None).read_string(text),
    ),
}
RENDERED = [
    name
    for path in list_files(SERVICE)
    if (ROOT / path).is_file() and not is_copied(name := path.relative_to(SERVICE).as_posix())
]
# The only Python file that differs between projects, and the words in its tagged lines.
TAGGED = "app/features.py"
TAGGED_OPTIONS = {"web_pages": "app.web", "weather_example": "weather"}
LEFTOVERS = r"(?<!\$)\{\{.*|\{%.*|#%.*|.*cookiecutter.*"
# Words that only a project with this choice may contain.
WORDS = {
    ("database", "postgresql"): r"postgres|psycopg|pgserver|libpq",
    ("database", "sqlite"): r"sqlite",
    ("deployment", "docker"): r"docker|compose\.(override\.)?yaml",
    ("deployment", "vm"): r"systemd|certbot|provision",
    ("process_manager", "gunicorn"): r"gunicorn",
    ("process_manager", "supervisor"): r"supervisor",
    ("process_manager", "circus"): r"circus",
    ("web_pages", "yes"): r"web_pages|web_language|app[/.]web\b|\bweb/|test_web(_|\b)|browsing|csrf",
    ("weather_example", "yes"): r"weather",
    ("ci", "github"): r"github",
    ("ci", "gitlab"): r"gitlab",
    ("license", "MIT"): r"\bMIT licen",
    ("license", "Apache-2.0"): r"apache",
    ("license", "Proprietary"): r"proprietary",
}

# Documents that compare all choices of an option.
COMPARISONS = {"database": "docs/change-database.md", "process_manager": "docs/process-managers.md"}


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: "-".join(variant.values()))
def project(request: pytest.FixtureRequest, bake: Bake) -> Iterator[BakedProject]:
    project = bake(**request.param)
    yield project
    shutil.rmtree(project.path)


@pytest.fixture(scope="module")
def files(project: BakedProject) -> dict[str, Path]:
    return project.list_files()


@pytest.fixture(scope="module")
def texts(project: BakedProject) -> dict[str, str]:
    return project.list_texts()


def assert_every_file_parses(texts: dict[str, str]) -> None:
    for name, text in texts.items():
        try:
            parse(Path(name).suffix, text)
        except Exception as error:
            raise AssertionError(f"{name} does not parse") from error


@cache
def parse(suffix: str, text: str) -> None:
    """Parse a text; cached, because most files are the same in most projects."""
    PARSERS.get(suffix, str)(text)


def test_project_has_exactly_the_files_of_its_choices(
    project: BakedProject, files: dict[str, Path], template: Path
) -> None:
    chosen = {name for name in read_sources(template) if is_chosen(name, project.answers)}
    assert set(files) == chosen | project.secrets | {RECORD}


def test_project_contains_no_template_syntax(texts: dict[str, str]) -> None:
    assert_nothing_is_left(texts)


def assert_nothing_is_left(texts: dict[str, str]) -> None:
    # docs/developing.md contains Jinja templates of the service, which are not templates of cookiecutter.
    own = {name: re.sub(r"(?ms)^```jinja\n.*?^```$", "", text) for name, text in texts.items()}
    assert {name: left for name, text in own.items() if (left := find(LEFTOVERS, text))} == {}


@cache
def find(pattern: str, text: str) -> list[str]:
    """Find a pattern; cached, because most texts are the same in most projects."""
    return re.findall(pattern, text, re.IGNORECASE)


def test_python_and_mail_templates_are_copied_unchanged(files: dict[str, Path], template: Path) -> None:
    copied = {name: path.read_bytes() for name, path in files.items() if is_copied(name) and name != TAGGED}

    assert {"app/main.py", "app/core/email/templates/layout.html", "app/core/email/templates/layout.txt"} <= set(copied)
    sources = read_sources(template)
    assert [name for name, content in copied.items() if content != sources[name]] == []


def test_tagged_lines_are_kept_only_for_options_answered_yes(project: BakedProject, template: Path) -> None:
    expected = (template / SERVICE / TAGGED).read_text(encoding="utf-8")
    for option in TAGGED_OPTIONS:
        # Remove only the tag if the answer is yes, and the whole line otherwise.
        is_kept = project.answers[option] == "yes"
        pattern = rf"(?m)  # only: {option}$" if is_kept else rf"(?m)^.*  # only: {option}\n"
        expected, count = re.subn(pattern, "", expected)
        assert count == 2

    assert "# only:" not in expected
    assert project.read(TAGGED) == expected
    for option, word in TAGGED_OPTIONS.items():
        assert (word in expected) == (project.answers[option] == "yes")


def test_only_the_list_of_features_has_option_tags(template: Path) -> None:
    tagged = [
        path.relative_to(template / SERVICE).as_posix()
        for path in (template / SERVICE).rglob("*.py")
        if "# only:" in path.read_text(encoding="utf-8")
    ]

    assert tagged == [TAGGED]


def test_python_names_no_feature_that_was_not_chosen(project: BakedProject, files: dict[str, Path]) -> None:
    modules = {name: path.read_text(encoding="utf-8") for name, path in files.items() if name.endswith(".py")}

    for option, word in TAGGED_OPTIONS.items():
        if project.answers[option] == "no":
            assert [name for name, text in modules.items() if find(word, text)] == []


@pytest.mark.parametrize("weather_example", CHOICES["weather_example"])
@pytest.mark.parametrize("web_pages", CHOICES["web_pages"])
def test_import_linter_reports_a_module_that_is_in_no_layer(weather_example: str, web_pages: str, bake: Bake) -> None:
    project = bake(weather_example=weather_example, web_pages=web_pages)

    def lint() -> tuple[int, str]:
        command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
        done = subprocess.run(command, cwd=project.path, capture_output=True, text=True)
        return done.returncode, done.stdout

    complete, _ = lint()
    (project.path / "app" / "notes.py").touch()
    (project.path / "app" / "pets").mkdir()
    (project.path / "app" / "pets" / "__init__.py").touch()
    broken, output = lint()

    assert (complete, broken) == (0, 1)
    assert re.findall(r"(?m)^- (\S+)", output) == ["app.notes", "app.pets"]
    assert "Add a new feature to the `layers` in pyproject.toml" in output


def test_every_file_parses(texts: dict[str, str]) -> None:
    assert_every_file_parses(texts)


@pytest.mark.parametrize("database", CHOICES["database"])
def test_shell_scripts_are_clean(database: str, bake: Bake) -> None:
    project = bake(database=database, deployment="both")

    scripts = [name for name in project.list_files() if name.startswith("deploy/") and name.endswith(".sh")]
    project.run([str(Path(sys.executable).with_name("shellcheck")), "--external-sources", *scripts])


@pytest.mark.parametrize(("ci", "pipeline"), [("github", ".github/workflows/ci.yml"), ("gitlab", ".gitlab-ci.yml")])
def test_postgresql_has_one_version_everywhere(ci: str, pipeline: str, bake: Bake) -> None:
    project = bake(database="postgresql", deployment="both", ci=ci)

    versions = {
        name: set(found)
        for name, text in project.list_texts().items()
        if (found := re.findall(r"\bpostgres(?::|ql-client-)(\d\d)\b", text))
    }

    assert versions.keys() == {"compose.yaml", "Dockerfile", pipeline}
    assert len(set.union(*versions.values())) == 1


def test_project_has_no_empty_files_or_folders(project: BakedProject) -> None:
    empty = {
        path.relative_to(project.path)
        for path in project.path.rglob("*")
        if not path.is_dir() and not path.stat().st_size
    }

    assert {path.name for path in empty} <= {"__init__.py"}
    assert all(any(path.iterdir()) for path in project.path.rglob("*") if path.is_dir())


def test_project_mentions_no_choice_that_was_not_taken(
    project: BakedProject, files: dict[str, Path], texts: dict[str, str]
) -> None:
    assert_nothing_else_is_mentioned(texts | {"names of the files": "\n".join(files)}, project.answers)


def assert_nothing_else_is_mentioned(texts: dict[str, str], answers: dict[str, str]) -> None:
    """Check that the texts mention only the choices in `answers`, and no choice of an option that has no answer."""
    for (option, choice), words in WORDS.items():
        if answers.get(option) not in {choice, "both"}:
            line = f"(?m)^.*(?:{words}).*$"
            found = {name: lines for name, text in texts.items() if (lines := find(line, text))}
            found.pop(COMPARISONS.get(option, ""), None)
            assert found == {}


def test_python_of_a_project_with_gunicorn_names_no_other_process_manager(bake: Bake) -> None:
    files = bake(process_manager="gunicorn").list_files()

    named = [
        name
        for name, path in files.items()
        if path.suffix == ".py" and re.search("supervisor|circus", path.read_text(encoding="utf-8"), re.IGNORECASE)
    ]
    assert named == []


def test_blocks_leave_no_extra_blank_lines(texts: dict[str, str], template: Path) -> None:
    assert_no_blank_lines_are_left(texts, template)


def assert_no_blank_lines_are_left(texts: dict[str, str], template: Path) -> None:
    sources = read_sources(template)
    for name, text in texts.items():
        assert text.count("\n\n\n") <= sources[name].count(b"\n\n\n"), name
        assert text.endswith("\n"), name
        assert not text.endswith("\n\n"), name


@pytest.mark.parametrize("name", RENDERED)
def test_each_file_is_correct_with_every_combination_of_its_options(
    name: str, template: Path, other: BakedProject
) -> None:
    """Renders only the file, because baking all combinations of the options would give thousands of projects."""
    for chosen, text in render_combinations(name, template, other.answers):
        texts = {name: text}
        assert_nothing_is_left(texts)
        assert_every_file_parses(texts)
        assert_nothing_else_is_mentioned(texts, chosen)
        assert_no_blank_lines_are_left(texts, template)


def test_projects_are_baked_with_every_structure_and_every_label() -> None:
    structure = set(CHOICES) - set(LABELS)
    for together in [*({*structure, label} for label in LABELS), set(LABELS)]:
        baked = {tuple(variant[option] for option in CHOICES if option in together) for variant in VARIANTS}

        assert baked == set(product(*(choices for option, choices in CHOICES.items() if option in together)))


def test_programs_stay_executable(project: BakedProject, files: dict[str, Path], template: Path) -> None:
    for name, path in files.items():
        if name not in {*project.secrets, RECORD}:
            assert path.stat().st_mode & stat.S_IXUSR == (template / SERVICE / name).stat().st_mode & stat.S_IXUSR, name


@pytest.fixture(scope="module")
def other(bake: Bake) -> BakedProject:
    return bake()


def test_each_project_gets_its_own_secret_key(project: BakedProject, other: BakedProject) -> None:
    assert stat.S_IMODE((project.path / ".env").stat().st_mode) == 0o600
    (secret,) = re.findall(r"(?m)^SECRET_KEY=(.*)$", project.read(".env"))
    assert re.fullmatch(r"[A-Za-z0-9_-]{48,}", secret)
    assert secret not in other.read(".env")
    assert project.read(".env").replace(secret, "") == re.sub(
        r"(?m)^SECRET_KEY=.*", "SECRET_KEY=", project.read(".env.example")
    )


def test_git_ignores_the_settings_file_and_nothing_else(project: BakedProject) -> None:
    project.run(["git", "init", "--quiet", "--template="])

    ignored = project.run(["git", "ls-files", "--others", "--ignored", "--exclude-standard"])
    kept = subprocess.run(["git", "check-ignore", "pyproject.toml", "uv.lock", ".env.example"], cwd=project.path)

    assert set(ignored.split()) == project.secrets
    assert kept.returncode == 1


@pytest.mark.parametrize("text", nasty.ACCEPTED.values(), ids=nasty.ACCEPTED)
def test_any_text_is_kept_unchanged(text: str, bake: Bake) -> None:
    project = bake(project_name=text, description=text, author_name=text)

    metadata = tomllib.loads(project.read("pyproject.toml"))
    assert metadata["project"]["description"] == text
    assert metadata["project"]["authors"][0]["name"] == text
    assert metadata["tool"]["service"]["title"] == text
    assert text in project.read("LICENSE")
    assert_every_file_parses(project.list_texts())


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("My Service", "my-service"),
        ("  Café & Bar!  ", "cafe-bar"),
        ("3D printer", "service-3d-printer"),
        ("2048", "service-2048"),
        ("🚀", "service"),
        ("X", "service-x"),
        ("w" * 200, "w" * 42),
        ("7" * 200, "service-" + "7" * 42),
    ],
)
def test_any_name_suggests_a_slug(name: str, slug: str, bake: Bake) -> None:
    assert bake(project_name=name).path.name == slug


def test_baking_over_a_project_keeps_its_secret(template: Path, tmp_path: Path) -> None:
    run_cookiecutter(template, tmp_path)
    secret = (tmp_path / "out" / "my-service" / ".env").read_text(encoding="utf-8")

    done = run_cookiecutter(template, tmp_path, "--overwrite-if-exists")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "my-service" / ".env").read_text(encoding="utf-8") == secret


def test_hook_prints_the_next_steps(bake: Bake, capfd: pytest.CaptureFixture[str]) -> None:
    bake(project_slug="todo-list")

    steps = capfd.readouterr().out.splitlines()
    assert len(steps) == 5
    assert "todo-list" in steps[0]
    assert [step.split()[:2] for step in steps[2:4]] == [["make", "run"], ["make", "test"]]


def test_caches_in_the_template_do_not_break_a_bake(template: Path, tmp_path: Path) -> None:
    dirty = shutil.copytree(template, tmp_path / "dirty")
    for name in ("app/__pycache__/main.cpython-311.pyc", ".ruff_cache/0.17.6/1", ".mypy_cache/3.11/app.data.json"):
        path = dirty / SERVICE / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\x91{{")

    done = run_cookiecutter(dirty, tmp_path)

    assert done.returncode == 0, done.stderr
