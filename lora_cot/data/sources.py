"""Sources by name, and mixtures of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from lora_cot.data import jsonl, llava_cot_100k, messages, shapes
from lora_cot.errors import DataError
from lora_cot.formats import CotFormat
from lora_cot.types import Sample

Loader = Callable[[Any, CotFormat], list[Sample]]

SOURCES: dict[str, Loader] = {
    "jsonl": jsonl.load,
    "llava_cot_100k": llava_cot_100k.load,
    "messages": messages.load,
    "shapes": shapes.load,
}
"""A source takes its own section of the recipe and the format, and gives all its samples."""


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
            samples = SOURCES[source.source](source, cot_format)
        except DataError as error:
            raise error.at(f"data source {number} ({source.source})") from None
        whole, part = divmod(source.weight, 1.0)
        mixed += samples * int(whole)
        mixed += random.Random(seed).sample(samples, round(part * len(samples)))
    return mixed
