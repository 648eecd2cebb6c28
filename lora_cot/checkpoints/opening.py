"""MODEL, as every command takes it: a run, an adapter, a merged folder or a hub id."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from lora_cot.adapters.lora import load_adapter
from lora_cot.backbones import Backbone
from lora_cot.backbones.base import Family
from lora_cot.backbones.loading import base_of, family_of, load_backbone
from lora_cot.checkpoints.layout import CONFIG, RECIPE_FILE, adapter_in, pass_folders
from lora_cot.checkpoints.pulling import hub_id, pull
from lora_cot.errors import Problem, RunError, nearest
from lora_cot.recipe import Recipe, load_saved
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import QuantizationSection

Quantization = Literal["auto", "nf4", "none"]

NF4 = QuantizationSection.model_validate(
    {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
)


@dataclass(frozen=True)
class Opened:
    """A model with what is known of how it was made."""

    backbone: Backbone
    recipe: Recipe
    said: str
    """How it was loaded, for the user."""
    model: str
    """As it was named."""
    quantization: Quantization
    """As it was asked for."""

    @property
    def family(self) -> Family:
        """Of its base."""
        return self.backbone.family


def find_adapter(model: str) -> Path | None:
    """The adapter's folder in a run, or the folder itself if it is one; of a split format, the folder of its adapters.

    Of a hub id it is the folder in the hub's cache that the adapter was downloaded to.

    Raises:
        RunError: the hub does not give all of it.
    """
    return adapter_in(Path(model)) or ((pulled := pull(model)) and adapter_in(pulled))


def saved_recipe(folder: Path) -> Recipe:
    """The recipe beside an adapter.

    Raises:
        RunError: there is none.
    """
    if not (folder / RECIPE_FILE).is_file():
        remedy = "name a folder that this package's training wrote"
        raise RunError(Problem(str(folder), f"no {RECIPE_FILE} beside the adapter", remedy))
    return load_saved(folder / RECIPE_FILE)


def open_model(model: str, quantization: Quantization = "auto") -> Opened:
    """A model ready to answer.

    Args:
        model: run, adapter, merged folder, miniature or hub id; REPO@REVISION is a hub id at a branch, tag or commit.
        quantization: auto loads an adapter's base as it was trained and anything else as it was saved.

    Raises:
        RunError, BackboneError: it is none of these; no such quantisation.
    """
    if quantization not in get_args(Quantization):
        what = f"no quantisation '{quantization}'"
        raise RunError(Problem("--quantization", what, nearest(quantization, get_args(Quantization))))
    adapter = find_adapter(model)
    if adapter is not None:
        recipe = saved_recipe(adapter)
        section = {"auto": recipe.quantization, "nf4": NF4, "none": None}[quantization]
        backbone = load_backbone(recipe.model, section)
        for name, folder in pass_folders(adapter, recipe).items():
            backbone = load_adapter(backbone, folder, name)
        name = str(adapter) if Path(model).exists() else f"{model} (commit {adapter.name[:7]})"
        said = f"adapter {name} on {recipe.model.base}, {_precision(section, backbone)}"
        return Opened(backbone, recipe, said, model, quantization)
    section = NF4 if quantization == "nf4" else None
    recipe, backbone = _open_whole(model, section)
    return Opened(backbone, recipe, f"{model}, {_precision(section, backbone)}", model, quantization)


def know_model(model: str) -> tuple[Recipe, Family]:
    """What a model is, where another process runs it: its recipe and its base's family; no weights are loaded.

    Args:
        model: see `open_model`.

    Raises:
        RunError, BackboneError: see `open_model`.
    """
    adapter = find_adapter(model)
    if adapter is not None:
        recipe = saved_recipe(adapter)
        return recipe, family_of(base_of(recipe.model, weights=False), recipe.model.revision)
    recipe, folders = _whole(model)
    if not folders:
        return recipe, family_of(base_of(recipe.model, weights=False), recipe.model.revision)
    return recipe, family_of(str(next(iter(folders.values()))))


def _whole(model: str) -> tuple[Recipe, dict[str, Path]]:
    """The recipe of a model without adapters, and the folder of each pass; none if it is in no folder of ours."""
    folder = Path(model) if os.path.isdir(model) else pull(model)
    if folder is None:  # a miniature, or somebody's model of the hub
        base, revision = hub_id(model)
        return Recipe(name="base", model=ModelSection(base=base, revision=revision)), {}
    written = folder / RECIPE_FILE
    known = load_saved(written) if written.is_file() else Recipe(name="base", model=ModelSection(base=model))
    folders = pass_folders(folder, known)
    if not all((place / CONFIG).is_file() for place in folders.values()):
        remedy = "name a run, an adapter, a merged folder, mini/NAME or a hub id"
        raise RunError(Problem(model, "the folder holds no adapter and no model", remedy))
    return known, folders


def _open_whole(model: str, section: QuantizationSection | None) -> tuple[Recipe, Backbone]:
    """A model without adapters; of a split format, one model for each pass."""
    known, folders = _whole(model)
    if not folders:
        return known, load_backbone(known.model, section)
    dtype = known.model.dtype
    loaded = {name: load_backbone(ModelSection(base=str(place), dtype=dtype), section) for name, place in folders.items()}
    first = next(iter(loaded.values()))
    return known, first if list(folders) == ["default"] else replace(first, merged=loaded)


def _precision(section: QuantizationSection | None, backbone: Backbone) -> str:
    dtype = str(backbone.model.dtype).removeprefix("torch.")
    if section is None:
        return dtype
    return f"quantised ({section.bnb_4bit_quant_type if section.load_in_4bit else '8-bit'}), rest {dtype}"
