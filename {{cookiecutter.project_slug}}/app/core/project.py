import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Project:
    name: str
    version: str
    title: str
    description: str


@cache
def read_project() -> Project:
    """Return the project's metadata from `pyproject.toml`, which is deployed with the code."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return Project(
        name=document["project"]["name"],
        version=document["project"]["version"],
        title=document["tool"]["service"]["title"],
        description=document["project"]["description"],
    )
