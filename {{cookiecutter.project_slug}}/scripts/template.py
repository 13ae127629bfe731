"""Run a tool of the project's template: `python3 scripts/template.py update` (`make update`)."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
RECORD = ".cruft.json"
ABBREVIATIONS = {
    "gh:": "https://github.com/{}.git",
    "gl:": "https://gitlab.com/{}.git",
    "bb:": "https://bitbucket.org/{}.git",
}
# The newest updater can read all older versions; other tools fit the version that the project comes from.
NEWEST = ("update",)


def read_record() -> tuple[str, str | None]:
    """Return the address and the commit of the template; the environment variable TEMPLATE overrides the address."""
    try:
        record = json.loads((ROOT / RECORD).read_text(encoding="utf-8"))
        address, commit = os.environ.get("TEMPLATE") or str(record["template"]), record["commit"]
    except FileNotFoundError:
        sys.exit(f"There is no {RECORD}, which records the template of this project: see docs/updating.md.")
    except (ValueError, LookupError, TypeError) as error:
        sys.exit(f"{RECORD} is not a record of a template ({error!r}): see docs/updating.md.")
    abbreviation = next(filter(address.startswith, ABBREVIATIONS), None)
    return ABBREVIATIONS[abbreviation].format(address[3:]) if abbreviation else address.removeprefix("git+"), commit


def run_git(*arguments: str) -> bool:
    # In a hook of git, variables such as GIT_DIR name the repository of the project.
    environment = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, env=environment, check=False).returncode == 0  # noqa: S603, S607  # git from PATH, with arguments of this program
    except FileNotFoundError:
        sys.exit("git is missing: install git 2.34 or later.")


def fetch_template(name: str, folder: str) -> None:
    """Clone the template into the folder, at the commit whose tools are run."""
    address, commit = read_record()
    if not run_git("clone", "--quiet", "--", address, folder):
        sys.exit(
            f"The template cannot be fetched from {address}. If it has moved, or is a folder of another computer, name "
            f"its address: make {name} TEMPLATE=ADDRESS"
        )
    if name in NEWEST:
        return
    if not commit:
        sys.exit(f"{RECORD} does not say which commit of the template this project comes from: see docs/updating.md.")
    if not run_git("-C", folder, "checkout", "--quiet", "--detach", commit):
        sys.exit(f"The template at {address} has no commit {commit}, which {RECORD} names: see docs/updating.md.")


def main(name: str, *arguments: str) -> int:
    processes: list[subprocess.Popen[bytes]] = []

    # A running tool decides when to end, and the folder must exist until then.
    def pass_on(number: int, _: FrameType | None) -> None:
        if not processes:
            sys.exit(128 + number)
        processes[0].send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    with tempfile.TemporaryDirectory(prefix="template-") as folder:
        fetch_template(name, folder)
        tool = Path(folder, "tools", f"{name}.py")
        if not tool.exists():
            sys.exit(f"The template has no {tool.name} in this version: run `make update`, or see docs/updating.md.")
        command = [os.environ.get("UV") or "uv", "run", "--quiet", "--script", str(tool)]
        try:
            processes.append(subprocess.Popen([*command, "--template", folder, "--project", ".", *arguments], cwd=ROOT))  # noqa: S603  # uv, and a tool of the template that the project was generated from
        except FileNotFoundError:
            sys.exit(f"uv is missing: run `make {name}`, which installs it, or see https://docs.astral.sh/uv/")
        return processes[0].wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
