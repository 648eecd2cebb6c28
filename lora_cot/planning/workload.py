"""The largest batch of a run, from its data if that can be read, else from the recipe's own limits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from lora_cot.backbones import Backbone
from lora_cot.data.images import MIN_SIDE, image_size
from lora_cot.data.labels import IGNORE_INDEX, NO_STAGE, Encoded, Encoder, image_slots
from lora_cot.data.lengths import SHRINK, LengthLimit, scaled
from lora_cot.data.sources import load_data
from lora_cot.errors import LoraCotError
from lora_cot.formats import CotFormat
from lora_cot.recipe import Recipe
from lora_cot.types import Sample

PHOTOGRAPH = (1024, 768)
"""Size of an image where the data cannot be read."""
LENGTH = 2048
"""Tokens of a sample where neither the data nor max_length says more."""
TEXT = 0.75
"""Share of such a sample that its image may take."""
MEASURED = 500
"""Samples, evenly spread, whose lengths are measured."""


@dataclass(frozen=True)
class Workload:
    """What training one adapter computes."""

    length: int
    """Tokens of its longest sample, image slots expanded."""
    answer: int
    """Tokens of that sample's answer."""
    mean_length: float
    mean_answer: float
    sizes: tuple[tuple[int, int], ...]
    """Widths and heights of the longest sample's images, in pixels."""
    samples: int | None
    """Rows of an epoch; None if the data cannot be read."""
    said: str
    """Where this comes from, for people."""


def workloads(recipe: Recipe, backbone: Backbone) -> list[Workload]:
    """One for each pass of the format."""
    limit = recipe.training.library.get("max_length")
    samples: list[Sample] = []
    try:
        samples, _ = load_data(recipe.data, recipe.format.build())
        if samples and getattr(backbone.processor, "chat_template", None):
            passes = recipe.format.build().spelled(backbone.family.tag_style).passes
            return [_measured(recipe, backbone, one, samples) for one in passes]
        why = "the base's tokenizer is not at hand"
    except (LoraCotError, OSError) as error:
        why = f"the data cannot be read: {str(error).splitlines()[0]}"
    length, size = int(limit or LENGTH), PHOTOGRAPH
    while (images := sum(backbone.family.image_tokens(backbone.processor, [size]))) > TEXT * length and min(size) > MIN_SIDE:
        size = scaled(size, SHRINK)  # a larger one would be dropped, or shown smaller
    length = max(length, images + MIN_SIDE)
    answer = (length - images) // 2
    said = f"{'max_length' if limit else 'assumed'} and an image of {size[0]}×{size[1]} ({why})"
    return [Workload(length, answer, length, answer, (size,), len(samples) or None, said)]


def _measured(recipe: Recipe, backbone: Backbone, one: CotFormat, samples: Sequence[Sample]) -> Workload:
    limit = LengthLimit(Encoder(backbone.processor, one), backbone.family.image_tokens)
    longest = recipe.training.library.get("max_length") or sys.maxsize
    taken = samples[:: max(1, len(samples) // MEASURED)]
    lengths = [min(limit.measure(sample).length, longest) for sample in taken]
    answers = [_answer_length(limit.encoder, sample) for sample in taken]
    length, number = max((length, number) for number, length in enumerate(lengths))
    sizes = tuple(image_size(image, recipe.data.max_pixels) for image in taken[number].images)
    said = f"{len(taken)} of {len(samples)} samples measured"
    means = sum(lengths) / len(lengths), sum(answers) / len(answers)
    return Workload(length, min(answers[number], length - 1), *means, sizes, len(samples), said)


def _answer_length(encoder: Encoder, sample: Sample) -> int:
    """Trained tokens of a sample, its images left out."""
    encoded = encoder.training(replace(sample, images=()), [])
    return sum(label != IGNORE_INDEX for label in encoded.labels)


def rows(backbone: Backbone, work: Workload, count: int, answered: bool) -> list[Encoded]:
    """The largest batch: its longest row, and others as they come; their images as the processor makes them, blank.

    Args:
        backbone: gives the processor.
        work: how long they are.
        count: how many.
        answered: with their answers, which are trained, or the prompts alone.
    """
    processor = backbone.processor
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    slots, made = image_slots(processor, [Image.new("RGB", size) for size in work.sizes])
    images = [token for run in slots for token in run]
    text = next(token for token in range(1, 1000) if token != image_token)

    def row(length: float, answer: float) -> Encoded:
        prompt = [*images, *[text] * max(1, round(length - answer) - len(images))]
        trained = [text] * max(1, round(answer)) if answered else []
        labels, stages = [IGNORE_INDEX] * len(prompt) + trained, [NO_STAGE] * len(prompt) + [0] * len(trained)
        return Encoded([*prompt, *trained], labels, stages, made, len(work.sizes))

    return [row(work.length, work.answer), *[row(work.mean_length, work.mean_answer)] * (count - 1)]
