"""The samples of a run: read, and checked before anything is trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_cot.adapters.lora import report
from lora_cot.backbones import Backbone, Family
from lora_cot.backbones.loading import limit_of
from lora_cot.data.lengths import keep_fitting
from lora_cot.data.sources import Loaded, load_counted
from lora_cot.errors import DataError, Problem
from lora_cot.recipe import Recipe
from lora_cot.recipe.schema import SEES_IMAGES
from lora_cot.training.hand_off import check_ids
from lora_cot.types import Sample
from lora_cot.validation.start import check_gold


@dataclass(frozen=True)
class Splits:
    """What a pass is trained, measured and asked on."""

    train: list[Sample]
    held_out: list[Sample]
    """Their loss is measured."""
    questions: list[Sample]
    """The same, with what earlier passes wrote; they are answered freely."""


def load_samples(recipe: Recipe, family: Family, processor: Any, workers: int) -> Loaded:
    """What is trained on and held out; no pass will stop at any of it.

    Args:
        recipe: its data and format.
        family: of the base.
        processor: the base's.
        workers: processes that measure the samples of a split format.

    Raises:
        DataError: there is nothing to train on; sources that cannot be read; samples that some pass cannot take.
    """
    cot_format = recipe.format.build()
    loaded = load_counted(recipe.data, cot_format)
    check_gold(loaded.train, "data.train", cot_format)
    check_gold(loaded.held_out, "data.eval", cot_format)
    if not loaded.train:
        raise DataError(Problem("data.train", "there is nothing to train on", "name at least one source"))
    if cot_format.split:
        _check_passes(recipe, family, processor, (loaded.train, loaded.held_out), workers)
    return loaded


def _check_passes(
    recipe: Recipe, family: Family, processor: Any, data: tuple[list[Sample], list[Sample]], workers: int
) -> None:
    """See that no pass will stop at data that the passes before it take.

    Raises:
        DataError: samples that are too long on gold text for some pass, or two of one id among those handed on.
    """
    parts = list(zip(("data.train", "data.eval"), data, strict=True))
    for part, rows in parts if recipe.training.hand_on == "predicted" else parts[1:]:
        try:
            check_ids(rows)
        except DataError as error:
            raise error.at(part) from None
    for one in recipe.format.build().spelled(family.tag_style).passes:
        limit = limit_of(recipe, family, processor, one)
        for part, rows in parts:
            keep_fitting(rows, limit, part, workers)


def check_reached(backbone: Backbone, samples: list[Sample]) -> None:
    """See that every sample's loss depends on something that is trained.

    Raises:
        DataError: samples without an image, where only what sees images is trained; or none with one, where that is new.
    """
    if backbone.family.new_modules(backbone.base_model) and not any(sample.images for sample in samples):
        remedy = "set it to none, or raise training.max_length if those with images are too long"
        raise DataError(Problem("model.vision_features", "no sample that is trained on has an image", remedy))
    if {line.part for line in report(backbone) if line.trained} <= SEES_IMAGES:
        blind = [sample.id for sample in samples if not sample.images]
        if blind:
            what = f"{len(blind)} samples have no image, {blind[0]} among them, and only what sees images is trained"
            raise DataError(Problem("lora.parts", what, "adapt language_model too, or take them out"))
