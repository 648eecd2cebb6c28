"""Files of the package under the names that documents have for them, from any folder."""

from pathlib import Path

import pytest

from lora_cot.errors import RecipeError
from lora_cot.recipe import load_recipe
from lora_cot.recipe.shipped import PLACES, shipped
from lora_cot.training.sharding import read_config
from tests.conftest import ROOT

NAME = "recipes/mini/llava_four_stage.yaml"


def test_a_recipe_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch):
    """A path that is there is meant before one of the package; a name that neither has is refused as it was given."""
    monkeypatch.chdir(tmp_path)
    assert load_recipe(NAME).name == "mini-llava-four-stage"
    stage = read_config(load_recipe(NAME, ["training.deepspeed=ds_configs/zero3.json"]))["zero_optimization"]["stage"]
    assert stage == 3
    (mine := tmp_path / NAME).parent.mkdir(parents=True)
    mine.write_text("name: mine\nmodel: {base: mini/llava}\n")
    assert load_recipe(NAME).name == "mine"
    with pytest.raises(RecipeError, match=r"^recipes/mini/none\.yaml · no such recipe file"):
        load_recipe("recipes/mini/none.yaml")


@pytest.mark.parametrize(
    "name", ["mini/llava_four_stage.yaml", "README.md", "tests/conftest.py", "recipes", str(ROOT / "no.yaml")]
)
def test_other_paths_are_left_alone(tmp_path, monkeypatch, name):
    """Nothing but those two folders is looked through, and no folder is a file."""
    monkeypatch.chdir(tmp_path)
    assert shipped(Path(name)) == Path(name)


def test_an_installed_package_has_its_own(tmp_path, monkeypatch):
    """What was installed is taken, whatever lies beside the package."""
    assert [place.name for place in PLACES] == ["shipped", ROOT.name]
    monkeypatch.chdir(tmp_path)
    for place in ("first", "second"):
        (tmp_path / place / "ds_configs").mkdir(parents=True)
        (tmp_path / place / "ds_configs" / "x.json").touch()
    monkeypatch.setattr("lora_cot.recipe.shipped.PLACES", (tmp_path / "first", tmp_path / "second"))
    assert shipped(Path("ds_configs/x.json")) == tmp_path / "first" / "ds_configs" / "x.json"
