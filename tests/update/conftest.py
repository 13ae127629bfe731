from pathlib import Path

import pytest

from tests.support.template import SERVICE
from tests.update.teams import Team, bake_team, commit_all, copy_template, replace, run_git

LABELS_MIGRATION = '''"""Labels of todos."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("todos", sa.Column("label", sa.String(20), nullable=True))


def downgrade() -> None:
    op.drop_column("todos", "label")
'''


def write_new_version(folder: Path) -> None:
    """Change the template as a release would: files are changed, renamed and added, options added and removed."""
    service = folder / SERVICE
    replace(folder / "cookiecutter.json", '  "nickname": "Bob",\n', '  "region": ["eu", "us"],\n')
    replace(folder / "cookiecutter.json", ', "Proprietary"],', "],")
    replace(folder / "CHANGELOG.md", "## Unreleased\n", "## 1.1.0\n\n- Todos have labels:\n  run `make migrate`.\n")
    (service / "app/core/cgroups.py").rename(service / "app/core/control_groups.py")
    replace(service / "app/core/control_groups.py", '"""', '"""The new version. ')
    for module in ("app/core/config/security.py", "app/core/process/workers.py", "tests/core/process/test_workers.py"):
        replace(service / module, "from app.core.cgroups", "from app.core.control_groups")
    replace(service / "pyproject.toml", '"cgroups | errors', '"control_groups | errors')
    replace(service / "README.md", "## Run it\n", "## Run it\n\nIn the region {{ cookiecutter.region }}.\n")
    replace(service / "docs/mail.md", "# E-mail\n", "# E-mail\n\nThe new version.\n")
    replace(service / "app/todos/service.py", "from functools", "# The new version.\nfrom functools")
    replace(service / "compose.yaml", "services:\n", "# The new version.\nservices:\n")
    replace(service / "Makefile", "help: ##", "new: ## A new target.\n\t@echo new\n\nhelp: ##")
    (service / "app/todos/labels.py").write_text('"""Labels."""\n', encoding="utf-8")
    (service / "migrations/versions/0006_labels.py").write_text(LABELS_MIGRATION, encoding="utf-8")
    (service / "docs/troubleshooting.md").unlink()


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the template: v1.0.0 is the work tree with one more option, v1.1.0 a later release."""
    folder = tmp_path_factory.mktemp("update") / "template"
    copy_template(folder)
    run_git(folder, "init", "--quiet", "--initial-branch=main")
    replace(folder / "cookiecutter.json", '  "license": [', '  "nickname": "Bob",\n  "license": [')
    commit_all(folder, "First release", tag="v1.0.0")
    write_new_version(folder)
    commit_all(folder, "Second release", tag="v1.1.0")
    return folder


@pytest.fixture(scope="session")
def baked(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """A project from v1.0.0. Tests change copies of it."""
    return bake_team(repository, tmp_path_factory.mktemp("baked"), "v1.0.0", database="sqlite")


@pytest.fixture
def team(baked: Team, tmp_path: Path) -> Team:
    return baked.copy(tmp_path / "project")
