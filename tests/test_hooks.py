import ast
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import jinja2
import pytest
import yaml

from tests.support import nasty
from tests.support.programs import UV, person_environment
from tests.support.projects import run_cookiecutter
from tests.support.template import CHOICES, CONTEXT, ROOT, SERVICE, read_table

HOOKS = sorted((ROOT / "hooks").iterdir())
TEXTS = ("project_name", "description", "author_name")
BAD_ANSWERS = [
    *((option, answer) for option in TEXTS for answer in nasty.REFUSED.values()),
    *((option, "") for option in (*TEXTS, "author_email", "domain_name")),
    *(
        ("project_slug", slug)
        for slug in (
            *("A", "a", "My-Service", "my_service", "my service", "my.service", "1st", "-abc", "abc-", "été", "a" * 51),
            *(
                "class",
                "async",
                "json",
                "asyncio",
                "app",
                "test",
                "tests",
                "fastapi",
                "fastapi--offline",
                "starlette",
                "circus",
                "a/b",
                "a/b/c",
                "../escape",
                "$(id)",
                "a\\b",
            ),
        )
    ),
    *(
        ("author_email", email)
        for email in (
            *(
                "nobody",
                "@example.com",
                "a@",
                "a@b@example.com",
                "a b@example.com",
                "a@exam ple.com",
                "a@-b.com",
                "a@b..c",
            ),
            *('"a"@example.com', "o'neil@example.com", "a\\@example.com", "$(id)@example.com", ".a@example.com"),
            *("a..b@example.com", "a@example.com\n", f"{'a' * 65}@example.com"),
        )
    ),
    *(
        ("domain_name", domain)
        for domain in (
            *("Example.com", "exa_mple.com", "-a.com", "a-.com", "a..b", "example.com.", ".com", "*.example.com"),
            *("https://example.com", "example.com/x", "example.com:80", "a b", "$(id)", f"{'a' * 64}.com", "é.com"),
            ".".join(["a" * 63] * 4),
        )
    ),
]
GOOD_ANSWERS = [
    *(("project_slug", slug) for slug in ("ab", "a1", "match", "my-service-2", "a--b", "a" * 50)),
    *(("author_email", email) for email in ("a@b", "First.Last+tag@Sub.Example.co", "a_b-c@1.example")),
    *(("domain_name", domain) for domain in ("example.com", "localhost", "api.1.example-2.co", "xn--caf-dma.example")),
]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_hook_is_python_and_imports_the_standard_library_only(hook: Path) -> None:
    tree = ast.parse(hook.read_text(encoding="utf-8"))

    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "." for node in imports if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in modules} <= sys.stdlib_module_names


def test_every_path_of_the_table_exists() -> None:
    table = read_table("post_gen_project.py", "ONLY_FOR")

    assert [path for path in table if not (ROOT / SERVICE / path).exists()] == []
    assert all(set(choices) < set(CHOICES[option]) for option, *choices in table.values())


def test_every_option_has_a_label_and_no_label_is_left_over() -> None:
    prompts = CONTEXT["__prompts__"]

    assert list(prompts) == [option for option in CONTEXT if not option.startswith("_")]
    assert {option: [*prompts[option]][1:] for option in prompts if type(prompts[option]) is dict} == {
        option: choices for option, choices in CHOICES.items() if type(prompts[option]) is dict
    }


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_no_answer_breaks_the_string_literal_in_the_hook(hook: Path) -> None:
    (line,) = (line for line in hook.read_text(encoding="utf-8").splitlines() if "cookiecutter |" in line)
    literal = jinja2.Environment(autoescape=False).from_string(line[line.index('r"""') : -1])  # noqa: S701  # renders Python, not HTML

    for length in range(6):
        for characters in product("\"'\\n{", repeat=length):
            answers = {"a": "".join(characters), "b": ""}

            assert json.loads(ast.literal_eval(literal.render(cookiecutter=answers))) == answers


@pytest.mark.parametrize(("option", "answer"), BAD_ANSWERS, ids=ascii)
def test_bad_answer_is_refused_with_an_explanation_and_leaves_no_files(
    option: str, answer: str, template: Path, tmp_path: Path
) -> None:
    done = run_cookiecutter(template, tmp_path, **({"project_slug": "slug"} | {option: answer}))

    sentence = done.stderr.splitlines()[0]
    assert done.returncode == 1
    assert sentence.startswith(f"{option} is {answer!r:.80}, but it must be ")
    assert sentence.endswith(".")
    assert sorted(os.listdir(tmp_path)) == ["home", "out"]
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(("option", "answer"), GOOD_ANSWERS)
def test_good_answer_is_accepted(option: str, answer: str, template: Path, tmp_path: Path) -> None:
    done = run_cookiecutter(template, tmp_path, **{option: answer})

    assert done.returncode == 0, done.stderr


def test_all_bad_answers_are_reported_together(template: Path, tmp_path: Path) -> None:
    done = run_cookiecutter(template, tmp_path, project_name="\x07", project_slug="Slug", domain_name="")

    assert [line.split()[0] for line in done.stderr.splitlines()[:3]] == ["project_name", "project_slug", "domain_name"]


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        *((option, True) for option in CONTEXT if option[0] != "_"),
        *(("author_name", answer) for answer in (False, None, 12, 1.5, [], ["a"], {}, {"a": "b"})),
    ],
    ids=repr,
)
def test_answer_that_is_not_text_in_a_replay_file_is_refused_with_an_explanation(
    option: str, answer: object, template: Path, tmp_path: Path
) -> None:
    done = replay(template, tmp_path, {option: answer})

    sentence = f"{option} is {answer!r}, but it must be text: put it in quotes in the file that the answers come from."
    assert done.returncode == 1
    assert sentence in done.stderr.splitlines()
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("option", CHOICES)
def test_unknown_choice_in_a_replay_file_is_refused_with_an_explanation(
    option: str, template: Path, tmp_path: Path
) -> None:
    done = replay(template, tmp_path, {option: "other"})

    assert done.returncode == 1
    assert f"{option} is 'other', but it must be one of {', '.join(CHOICES[option])}." in done.stderr.splitlines()
    assert os.listdir(tmp_path / "out") == []


def replay(template: Path, folder: Path, answers: dict[str, object]) -> subprocess.CompletedProcess[str]:
    """Bake from a replay file, such as cookiecutter writes after each bake; `answers` replace the default answers."""
    first = {option: value[0] if isinstance(value, list) else value for option, value in CONTEXT.items()}
    path = folder / "replay.json"
    path.write_text(json.dumps({"cookiecutter": first | {"project_slug": "slug"} | answers}), encoding="utf-8")
    return run_cookiecutter(template, folder, "--replay-file", str(path))


@pytest.mark.parametrize("answer", [True, None, {"a": "b"}], ids=repr)
@pytest.mark.parametrize("option", [option for option in CONTEXT if option[0] != "_" and option not in CHOICES])
def test_answer_that_is_not_text_in_the_configuration_is_refused_with_an_explanation(
    option: str, answer: object, template: Path, tmp_path: Path
) -> None:
    path = tmp_path / "answers.yaml"
    path.write_text(yaml.safe_dump({"default_context": {option: answer}}), encoding="utf-8")

    done = run_cookiecutter(template, tmp_path, "--config-file", str(path))

    assert done.returncode == 1
    assert f"{option} is {answer!r}, but it must be text: put it in quotes" in done.stderr
    assert os.listdir(tmp_path / "out") == []


def run_released_cookiecutter(version: str, template: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    tool = (UV, "tool", "run", "--quiet", "--python", sys.executable)
    command = ("--from", f"cookiecutter=={version}", "--with", "setuptools<81", "cookiecutter")
    options = ("--no-input", "--default-config", "--output-dir", str(folder / "out"), str(template))
    environment = person_environment(HOME=str(folder), TMPDIR=str(folder))
    return subprocess.run([*tool, *command, *options], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", ["1.7.3", "2.1.1", "2.5.0"])
def test_old_cookiecutter_is_refused_with_an_explanation(version: str, template: Path, tmp_path: Path) -> None:
    done = run_released_cookiecutter(version, template, tmp_path)

    assert done.returncode == 1
    assert f"This is cookiecutter {version}, but the template needs 2.6 or later." in done.stderr
    assert os.listdir(tmp_path / "out") == []


def test_oldest_cookiecutter_bakes_the_same_as_the_newest(template: Path, tmp_path: Path) -> None:
    done = run_released_cookiecutter("2.6.0", template, tmp_path)
    (tmp_path / "newest").mkdir()
    newest = run_cookiecutter(template, tmp_path / "newest", project_slug="my-service")

    assert (done.returncode, newest.returncode) == (0, 0), done.stderr
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "out" / "my-service", tmp_path / "newest" / "out" / "my-service")
    )
    assert {path for path in first | second if first.get(path) != second.get(path)} == {
        path for path in first if path == Path(".env") or (path.parts[0] == "secrets" and path.name[0] != ".")
    }


def test_choices_of_the_hook_are_those_of_the_template() -> None:
    assert read_table("pre_gen_project.py", "CHOICES") == {
        option: tuple(choices) for option, choices in CHOICES.items()
    }


def test_refusal_removes_no_existing_folder(template: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / "file").touch()
    (tmp_path / "out").rename(tmp_path / "kept")

    done = run_cookiecutter(template, tmp_path, project_slug=f"{tmp_path}/kept/a/b")

    assert done.returncode == 1
    assert os.listdir(tmp_path / "kept" / "a") == ["file"]


def test_empty_slug_is_refused_by_cookiecutter_itself(template: Path, tmp_path: Path) -> None:
    done = run_cookiecutter(template, tmp_path, project_slug="")

    assert done.returncode == 1
    assert "already exists" in done.stdout
    assert os.listdir(tmp_path / "out") == []
