from pathlib import Path

import pytest

from app.core.project import ROOT
from tests.support.config import GOOD_SECRET, PRODUCTION, SQLITE, load, refuse

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_production_has_no_default_folder_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    local = load(monkeypatch, SECRET_KEY=GOOD_SECRET, DATABASE_URL=SQLITE)
    deployed = load(monkeypatch, **PRODUCTION)
    with_folder = load(monkeypatch, STORAGE_FOLDER="/var/lib/files")

    assert local.files_folder == ROOT / "data" / "files"
    assert deployed.files_folder is None
    assert "neither STORAGE_FOLDER nor STORAGE_S3_BUCKET is set" in " ".join(deployed.notes)
    assert with_folder.files_folder == Path("/var/lib/files")
    assert "STORAGE" not in " ".join([*local.notes, *with_folder.notes])


def test_relative_storage_folder_is_inside_project_and_refused_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, SECRET_KEY=GOOD_SECRET, DATABASE_URL=SQLITE, STORAGE_FOLDER="files")

    assert settings.files_folder == ROOT / "files"
    assert refuse(monkeypatch, **PRODUCTION) == [
        "STORAGE_FOLDER: must be an absolute path: a relative one is inside the installed version of the service, which"
        " a later deployment deletes"
    ]


def test_storage_bucket_overrides_storage_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, **PRODUCTION, STORAGE_FOLDER="/files", STORAGE_S3_BUCKET="files")

    assert settings.stores_files
    assert settings.notes[-1] == "STORAGE_S3_BUCKET is set: STORAGE_FOLDER is ignored"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"BUCKET": "My_Files"}, "STORAGE_S3_BUCKET: must be 3 to 63 lower-case letters, digits, dots and hyphens"),
        ({"ENDPOINT": "http://127.0.0.1:9000"}, "STORAGE_S3_ENDPOINT: has no effect without a bucket"),
        ({"ACCESS_KEY_ID": "x"}, "STORAGE_S3_ACCESS_KEY_ID: has no effect without a bucket"),
        ({"SECRET_ACCESS_KEY": "x"}, "must be set together with STORAGE_S3_ACCESS_KEY_ID"),
        ({"BUCKET": "files", "ACCESS_KEY_ID": "x"}, "must be set together with STORAGE_S3_ACCESS_KEY_ID"),
        ({"BUCKET": "files", "ENDPOINT": "127.0.0.1:9000"}, "STORAGE_S3_ENDPOINT: must be http:// or https://"),
    ],
)
def test_invalid_bucket_settings_are_refused(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], problem: str
) -> None:
    named = {f"STORAGE_S3_{name}": value for name, value in values.items()}

    problems = refuse(monkeypatch, **PRODUCTION, **named)

    assert len(problems) == 1
    assert problem in problems[0]
