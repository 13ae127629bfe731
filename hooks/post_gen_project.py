"""Finish the new project: remove the files that were not chosen, generate its secrets, and print the next steps.

cookiecutter renders this file and runs it in the new folder: standard library only.
"""

import json
import os
import re
import secrets
import shutil
from pathlib import Path

# An answer cannot end this literal: in JSON, the quote that ends a string is never followed by two more.
ANSWERS: dict[str, str] = json.loads(r"""{{ cookiecutter | tojson }}""")

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


for path, (option, *choices) in ONLY_FOR.items():
    if ANSWERS[option] not in choices and Path(path).exists():
        remove(Path(path))
settle_tags()
write_env()
if Path("compose.yaml").exists():
    write_secrets()
print(NEXT_STEPS.format(slug=ANSWERS["project_slug"]), end="")
