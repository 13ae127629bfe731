"""Finish the new project: remove the files that were not chosen, generate its secrets, write the record of its answers,
and print the next steps.

cookiecutter renders this file and runs it in the new folder: standard library only.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path

# An answer cannot end this literal: in JSON, the quote that ends a string is never followed by two more.
ANSWERS: dict[str, str] = json.loads(r"""{{ cookiecutter | tojson }}""")

# The origin and the answers of the project, in the form that the tool cruft reads; `make update` also reads it.
RECORD = Path(".cruft.json")
# cookiecutter renders this pattern, and any answer that does not come from its prompt.
TEMPLATE_SYNTAX = re.compile(r"[{][#%{]|^\s*[#]%")

# Path: (option, the choices that keep the path).
ONLY_FOR: dict[str, tuple[str, ...]] = {
    "app/core/db/backup/postgresql.py": ("database", "postgresql"),
    "app/core/db/backup/sqlite.py": ("database", "sqlite"),
    ".dockerignore": ("deployment", "docker", "both"),
    ".github": ("ci", "github"),
    ".gitlab-ci.yml": ("ci", "gitlab"),
    "Dockerfile": ("deployment", "docker", "both"),
    "compose.override.yaml": ("deployment", "docker", "both"),
    "compose.yaml": ("deployment", "docker", "both"),
    "app/core/process/monitor.py": ("process_manager", "supervisor", "circus"),
    "app/core/process/worker.py": ("process_manager", "supervisor", "circus"),
    "app/weather": ("weather_example", "yes"),
    "app/web": ("web_pages", "yes"),
    "deploy/circus": ("process_manager", "circus"),
    "deploy/docker": ("deployment", "docker", "both"),
    "deploy/docker/database.sql": ("database", "postgresql"),
    "deploy/supervisor": ("process_manager", "supervisor"),
    "deploy/vm": ("deployment", "vm", "both"),
    "deploy/vm/owner": ("database", "postgresql"),
    "deploy/vm/units/service-backup-database.service": ("database", "postgresql"),
    "docs/containers.md": ("deployment", "docker", "both"),
    "docs/pages.md": ("web_pages", "yes"),
    "docs/postgresql.md": ("database", "postgresql"),
    "docs/server.md": ("deployment", "vm", "both"),
    "gunicorn_conf.py": ("process_manager", "gunicorn"),
    "migrations/versions/0005_weather_reports.py": ("weather_example", "yes"),
    "scripts/embedded_postgres.py": ("database", "postgresql"),
    "secrets": ("deployment", "docker", "both"),
    "tests/core/db/driver/test_postgresql.py": ("database", "postgresql"),
    "tests/core/db/test_backup_postgresql.py": ("database", "postgresql"),
    "tests/core/db/test_backup_sqlite.py": ("database", "sqlite"),
    "tests/core/db/test_copy_postgresql.py": ("database", "postgresql"),
    "tests/core/db/test_database_roles.py": ("database", "postgresql"),
    "tests/test_embedded_postgres.py": ("database", "postgresql"),
    "tests/core/process/test_gunicorn.py": ("process_manager", "gunicorn"),
    "tests/core/db/test_postgresql.py": ("database", "postgresql"),
    "tests/core/process/test_monitor.py": ("process_manager", "supervisor", "circus"),
    "tests/weather": ("weather_example", "yes"),
    "tests/support/browsing.py": ("web_pages", "yes"),
    "tests/web": ("web_pages", "yes"),
    "tests/support/weather_service.py": ("weather_example", "yes"),
}

# The only Python file that depends on options. A line with this tag is kept, without the tag, if the answer is yes, and
# removed otherwise.
TAGGED = Path("app/features.py")
TAG = re.compile(r"  # only: ([a-z_]+)$")

NEXT_STEPS = """\
{slug} is ready. Next:
  cd {slug} && git init
  make run     install, migrate, and serve http://127.0.0.1:8000/docs
  make test    run the tests
See README.md for more. The settings of this machine and its new secret key are in .env.
"""


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if not any(path.parent.iterdir()):
        remove(path.parent)


def settle_tags() -> None:
    lines = TAGGED.read_text(encoding="utf-8").splitlines()
    tags = [TAG.search(line) for line in lines]
    kept = [TAG.sub("", line) for line, tag in zip(lines, tags, strict=True) if not tag or ANSWERS[tag[1]] == "yes"]
    TAGGED.write_text("\n".join(kept) + "\n", encoding="utf-8", newline="\n")


def write_env() -> None:
    """Create `.env` from `.env.example`, with a new key. A second bake keeps the existing file with its secret."""
    text = Path(".env.example").read_text(encoding="utf-8")
    # Hexadecimal digits need no quotes, and cannot contain a word that production rejects as a placeholder.
    text = re.sub(r"(?m)^SECRET_KEY=.*$", f"SECRET_KEY={secrets.token_hex(32)}", text)
    if not Path(".env").exists():
        with open(os.open(".env", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)


def write_secrets() -> None:
    """Create the secrets as deploy/docker/secrets.sh does; that script explains the file modes."""
    folder = Path("secrets")
    folder.chmod(0o700)
    for name in re.findall(r"(?m)^    file: \./secrets/(.+)$", Path("compose.yaml").read_text(encoding="utf-8")):
        if not (folder / name).exists():
            (folder / name).write_text(secrets.token_hex(32), encoding="utf-8")
            (folder / name).chmod(0o644)


def run_git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git in the folder of the template, or None if git fails or is missing."""
    # A hook of git sets variables such as GIT_DIR, which would name another repository. The folder may belong to
    # another user: its hooks, such as this one, are trusted already.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", "safe.directory=*", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def quote_for_template(answer: str) -> str:
    """Return a text that cookiecutter renders as the answer."""
    if not TEMPLATE_SYNTAX.search(answer):
        return answer
    # Two braces side by side would be template syntax of this file.
    return "{" * 2 + f" {json.dumps(answer, ensure_ascii=False)} " + "}" * 2


def find_template() -> Path | None:
    """Return the folder of the template, or None if it is unknown."""
    # A relative path begins at the folder in which the user started cookiecutter, which is not the one of this hook.
    folder = Path(os.environ.get("PWD", os.sep), ANSWERS["_repo_dir"]).resolve()
    return folder if (folder / "cookiecutter.json").exists() else None


def find_address(folder: Path | None, root: Path | None) -> str:
    """Return the address of the template, without secrets: its remote repository, or its own folder."""
    address = ANSWERS["_template"]
    remote = run_git(root, "remote", "get-url", "origin") if root else None
    if remote and re.match(r"\w[\w+.-]*://|[^/\\]+@[^/\\]+:", remote):
        address = remote
    elif folder and not re.match(r"\w[\w+.-]*:", address):
        address = str(root or folder)
    return re.sub(r"(?i)^(https?://)([^/@]*@)?([^?]*).*", r"\1\3", address)


def write_record() -> None:
    """Record the template's address, commit and version, and the answers; the commit is null without git."""
    folder = find_template()
    # The template may be a copy inside of another repository, which does not contain it.
    tracked = folder and run_git(folder, "ls-files", "--error-unmatch", "cookiecutter.json")
    root = Path(run_git(folder, "rev-parse", "--show-toplevel") or folder) if folder and tracked else None
    inside = folder.relative_to(root).as_posix() if folder and root else "."
    answers = {option: quote_for_template(answer) for option, answer in ANSWERS.items() if not option.startswith("_")}
    record = {
        "template": find_address(folder, root),
        "commit": run_git(root, "rev-parse", "HEAD") if root else None,
        "checkout": ANSWERS["_checkout"],
        "context": {"cookiecutter": answers},
        "directory": None if inside == "." else inside,
        "version": run_git(root, "describe", "--tags") if root else None,
    }
    RECORD.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")
    if root and run_git(root, "status", "--porcelain"):
        print("The template has changes that are not committed: `make update` will not know them.")


for path, (option, *choices) in ONLY_FOR.items():
    if ANSWERS[option] not in choices and Path(path).exists():
        remove(Path(path))
settle_tags()
write_env()
# The tool cruft writes the record by itself, and does not tell hooks the folder of the template.
if "_repo_dir" in ANSWERS:
    write_record()
if Path("compose.yaml").exists():
    write_secrets()
print(NEXT_STEPS.format(slug=ANSWERS["project_slug"]), end="")
