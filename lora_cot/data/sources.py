"""Sources by name, and mixtures of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from lora_cot.data import aokvqa, jsonl, llava_cot_100k, messages, scienceqa, shapes
from lora_cot.data.rationales import attach
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.recipe.schema import DataSection
from lora_cot.types import Sample

Loader = Callable[[Any, CotFormat], list[Sample]]

SOURCES: dict[str, Loader] = {
    "jsonl": jsonl.load,
    "llava_cot_100k": llava_cot_100k.load,
    "messages": messages.load,
    "shapes": shapes.load,
    "scienceqa": scienceqa.load,
    "aokvqa": aokvqa.load,
}
"""A source takes its own section of the recipe and the format, and gives all its samples."""


def load_data(section: DataSection, cot_format: CotFormat, seed: int = 0) -> tuple[list[Sample], list[Sample]]:
    """What is trained on, and what is held out, by the recipe's section.

    Raises:
        DataError: the problems of a source; or held_out leaves nothing to train on.
    """
    train, held_out = load_mixture(section.train, cot_format, seed), load_mixture(section.eval, cot_format, seed)
    if section.held_out is None:
        return train, held_out
    rows = list({id(sample): sample for sample in train}.values())  # a weight above 1 repeats them
    if section.held_out >= len(rows):
        what = f"{section.held_out} of {len(rows)} rows are kept back: none is left to train on"
        raise DataError(Problem("data.held_out", what, "keep back fewer"))
    chosen = random.Random(f"held-out-{seed}").sample(rows, section.held_out)
    ids = {id(sample) for sample in chosen}
    return [sample for sample in train if id(sample) not in ids], chosen


def load_mixture(sources: Sequence[Any], cot_format: CotFormat, seed: int = 0) -> list[Sample]:
    """Samples of all sources, each as often as its weight says.

    Args:
        sources: sections of a recipe.
        cot_format: how answers that are not given by stage are read.
        seed: which rows a fractional weight takes.

    Raises:
        DataError: the problems of a source, with its place in the list.
    """
    mixed: list[Sample] = []
    for number, source in enumerate(sources):
        try:
            samples = attach(SOURCES[source.source](source, cot_format), source)
        except DataError as error:
            raise error.at(f"data source {number} ({source.source})") from None
        whole, part = divmod(source.weight, 1.0)
        mixed += samples * int(whole)
        mixed += random.Random(seed).sample(samples, round(part * len(samples)))
    return mixed
