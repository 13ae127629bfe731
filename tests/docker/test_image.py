"""The contents of the image, which must include no secrets."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from tests.support.containers import HARDENED, TAG, Stack, list_with_exited, run_docker
from tests.support.programs import UV
from tests.support.projects import Bake


def test_image_has_no_build_tools_and_no_files_of_development(stack: Stack) -> None:
    image = stack.inspect(stack.image)
    config = image["Config"]
    look = "ls -A /service; which gcc cc make uv pg_dump; find /opt/venv /service/app -name '*.py' | wc -l; "
    look += "find /opt/venv /service/app -name '*.pyc' | wc -l; env"

    found = run_docker("run", "--rm", "--network=none", stack.image, "sh", "-c", look)

    files = set(found.split("env", 1)[0].split()) & {".env", "secrets", "tests", "Dockerfile", "compose.yaml", "uv"}
    sources, compiled = (int(line) for line in found.splitlines() if line.isdigit())
    assert not files
    assert "/gcc" not in found
    assert "/make" not in found
    assert "/pg_dump" not in found
    assert compiled > 0.95 * sources
    # start.sh configures the memory allocator.
    assert config["Cmd"] == ["./start.sh"]
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "python"]
    assert config["Labels"]["org.opencontainers.image.title"] == stack.project.path.name
    assert config["Labels"]["org.opencontainers.image.version"] == TAG
    assert image["Size"] < 300_000_000


def test_no_secret_is_in_a_layer_or_in_the_environment(stack: Stack, tmp_path: Path) -> None:
    secrets = {stack.project.read(name) for name in stack.project.secrets - {".env"}}
    containers = run_docker("inspect", *(name for service in HARDENED for name in list_with_exited(stack, service)))
    run_docker("save", "--output", str(tmp_path / "image.tar"), stack.image)

    assert len(secrets) == 4
    assert not [secret for secret in secrets if secret in containers]
    assert not [secret for secret in secrets if secret in run_docker("history", "--no-trunc", stack.image)]
    with tarfile.open(tmp_path / "image.tar") as image:
        found = [name for name, content in read_layers(image) if any(secret.encode() in content for secret in secrets)]
    assert not found


def read_layers(image: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """Yield every JSON description of the image and every file of every layer, even if a later layer hides the file."""
    for member in image:
        blob = image.extractfile(member)
        if blob is None:
            continue
        is_description = blob.read(1) in {b"{", b"[", b""}
        blob.seek(0)
        if is_description:
            yield member.name, blob.read()
            continue
        with tarfile.open(fileobj=blob) as layer:
            yield from (
                (file.name, content.read()) for file in layer if file.isreg() and (content := layer.extractfile(file))
            )


def test_image_is_built_from_the_lock_file_if_there_is_one(bake: Bake) -> None:
    stack = Stack(bake(project_slug=f"lock-{uuid4().hex[:8]}", database="sqlite"))
    stack.project.run([UV, "lock"])
    lock = stack.project.path / "uv.lock"
    try:
        stack.compose("build", "app")
        lock.write_text(
            lock.read_text(encoding="utf-8").replace('name = "alembic"', 'name = "alembik"'), encoding="utf-8"
        )
        refused = stack.compose("build", "app", check=False)
    finally:
        stack.down()

    assert "needs to be updated" in refused or "Failed to parse" in refused
