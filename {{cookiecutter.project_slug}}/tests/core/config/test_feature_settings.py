import re
from pathlib import Path

import pytest

from app.core.config.load import ConfigurationError, env_names, load_settings
from app.core.config.settings import Settings
from app.features import SETTINGS
from tests.support.config import ALL_SETTINGS, PRODUCTION, SQLITE, PetSettings
from tests.support.databases import make_settings

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_a_feature_has_settings_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "pet_shop_key").write_text("from a file")
    monkeypatch.setenv("PET_LIMIT", "5")
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)

    settings = load_settings([PetSettings])

    assert settings.of(PetSettings).pet_shop_key.get_secret_value() == "from a file"
    assert "5 pets at most" in settings.notes
    assert Settings(**settings.model_dump()).of(PetSettings).pet_limit == 3


def test_problems_of_feature_settings_are_reported_with_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", SQLITE)
    monkeypatch.setenv("PET_LIMIT", "hunter2")

    with pytest.raises(ConfigurationError) as refusal:
        load_settings([PetSettings])

    names = re.findall("(?m)^  ([A-Z_]+): ", str(refusal.value))
    assert names == ["SECRET_KEY", "PET_SHOP_KEY", "PET_LIMIT"]
    assert "hunter2" not in str(refusal.value)


def test_no_two_features_read_the_same_setting() -> None:
    names = env_names(*ALL_SETTINGS)

    assert [name for name in names if names.count(name) > 1] == [], "give it to one, or prefix it with the feature"


def test_a_misspelt_setting_is_refused_in_tests() -> None:
    with pytest.raises(TypeError, match=r"databse_pool_size.* Did you mean database_pool_size"):
        make_settings(SQLITE, databse_pool_size=1)


def test_a_feature_gets_its_settings_in_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.databases.SETTINGS", (*SETTINGS, PetSettings))

    settings = make_settings(SQLITE, pet_shop_key="x", pet_limit=7, port=1)

    assert (settings.of(PetSettings).pet_limit, settings.port) == (7, 1)
