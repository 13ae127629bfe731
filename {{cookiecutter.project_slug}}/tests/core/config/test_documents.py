"""`docs/settings.md` and `.env.example`, which are written from the settings."""

from pathlib import Path

import pytest

from app.core.config.base import FeatureSettings
from app.core.project import ROOT
from scripts.document_settings import render_documents
from tests.support.config import ALL_SETTINGS, PetSettings

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_the_documents_of_the_settings_are_up_to_date() -> None:
    for name, text in render_documents().items():
        assert (ROOT / name).read_text() == text, f"{name} is out of date: run `make docs`"


def test_every_setting_has_a_description() -> None:
    fields = [field for kind in ALL_SETTINGS for field in kind.model_fields.items()]

    assert [name for name, field in fields if not (field.description or "").endswith(".")] == []


def test_the_documents_follow_the_settings_of_features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def document(*kinds: type[FeatureSettings]) -> str:
        monkeypatch.setattr("scripts.document_settings.SETTINGS", kinds)
        written = render_documents()
        for name, text in written.items():
            (tmp_path / name).write_text(text)
        return "".join(written.values())

    for name in render_documents():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = (ROOT / name).read_text()
        (tmp_path / name).write_text(text.replace("\n| `PORT` |", "\n| `PET_LIMIT` |\n| `PORT` |"))
    monkeypatch.setattr("scripts.document_settings.ROOT", tmp_path)

    added = document(PetSettings)
    assert "\n## Pet\n\n" in added
    assert "| `PET_LIMIT` | `3` | integer, 0 to 100 | Number of pets. |\n" in added
    assert "| `PET_LIMIT` | `3` | Number of pets. |\n" in added
    assert "\n\n# --- Pet\n# PET_SHOP_KEY=\n# PET_LIMIT=3\n# PET_NAMES=\n" in added
    assert document(PetSettings) == added
    assert "PET_" not in document()
