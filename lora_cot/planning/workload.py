"""The largest batch of a run, from its data if that can be read, else from the recipe's own limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from lora_cot.backbones import Backbone
from lora_cot.backbones.loading import limit_of
from lora_cot.data.chat import image_slots
from lora_cot.data.images import MIN_SIDE, image_size
from lora_cot.data.labels import IGNORE_INDEX, NO_STAGE, Encoded
from lora_cot.data.lengths import SHRINK, scaled
from lora_cot.data.sources import load_data
from lora_cot.errors import DataError, LoraCotError
from lora_cot.formats import CotFormat
from lora_cot.recipe import Recipe
from lora_cot.types import Sample

PHOTOGRAPH = (1024, 768)
"""Size of an image where the data cannot be read."""
LENGTH = 2048
"""Tokens of a sample where neither the data nor max_length says more."""
MEASURED = 500
"""Samples, evenly spread, whose lengths are measured, at most."""


@dataclass(frozen=True)
class Workload:
    """What training one adapter computes."""

    length: int
    """Tokens of its longest sample, image slots expanded; of an encoder-decoder, those of its longer text."""
    answer: int
    """Tokens of that sample's answer."""
    mean_length: float
    mean_answer: float
    sizes: tuple[tuple[int, int], ...]
    """Widths and heights of its images, in pixels; of the longest with images, where it has none."""
    samples: int | None
    """Rows of an epoch, those that are too long left out; None if the data cannot be read."""
    said: str
    """Where this comes from, for people."""


def workloads(recipe: Recipe, backbone: Backbone) -> list[Workload]:
    """One for each pass of the format."""
    samples: list[Sample] = []
    try:
        samples, _ = load_data(recipe.data, recipe.format.build())
        if not samples:
            why = "the recipe names no data"
        elif _reads_text(backbone):
            passes = recipe.format.build().spelled(backbone.family.tag_style).passes
            return [_measured(recipe, backbone, one, samples) for one in passes]
        else:
            why = "the base's tokenizer is not at hand"
    except (LoraCotError, OSError) as error:
        why = f"the data cannot be read: {str(error).splitlines()[0]}"
    return [_assumed(recipe, backbone, len(samples) or None, why)]


def _reads_text(backbone: Backbone) -> bool:
    """Whether the tokenizer is the base's own: those that come with this package know nothing but special tokens."""
    if backbone.family.is_encoder_decoder:
        return len(backbone.processor.tokenizer) > backbone.base_model.config.vocab_size // 2  # type: ignore[union-attr,operator,return-value]
    return bool(getattr(backbone.processor, "chat_template", None))


def _assumed(recipe: Recipe, backbone: Backbone, samples: int | None, why: str) -> Workload:
    """A sample as long as it may be, with a photograph: one that is made smaller where the whole has no room."""
    limit, size = recipe.training.library.get("max_length"), PHOTOGRAPH
    while limit and _image_tokens(backbone, size) > limit // 2 and min(size) > MIN_SIDE:
        size = scaled(size, SHRINK)
    images = _image_tokens(backbone, size)
    length = max(limit or LENGTH, images + 2)
    answer = length if backbone.family.is_encoder_decoder else (length - images) // 2
    said = f"{'max_length' if limit else 'assumed'} and an image of {size[0]}×{size[1]} ({why})"
    return Workload(length, answer, length, answer, (size,), samples, said)


def _image_tokens(backbone: Backbone, size: tuple[int, int]) -> int:
    return sum(backbone.family.image_tokens(backbone.processor, [size]))


def _measured(recipe: Recipe, backbone: Backbone, one: CotFormat, samples: Sequence[Sample]) -> Workload:
    """Of the samples that are kept; the longest has images if any sample has.

    Raises:
        DataError: none is kept.
    """
    limit = limit_of(recipe, backbone.family, backbone.processor, one)
    taken = samples[:: math.ceil(len(samples) / MEASURED)]
    found = [(sample, limit.measure(sample)) for sample in taken]
    kept = [(sample, measured) for sample, measured in found if limit.too_long(sample, measured) is None]
    if not kept:
        raise DataError(f"every sample is longer than training.max_length={limit.max_length}")
    longest = max((measured for _, measured in kept), key=lambda measured: measured.length)
    length = longest.length
    said = f"{len(taken)} of {len(samples)} samples measured"
    if len(kept) < len(taken):
        said += f", {len(taken) - len(kept)} of them longer than max_length"
    bounded = len(kept) < len(taken) or any(measured.scale < 1 for _, measured in kept)
    if bounded and limit.max_length and len(taken) < len(samples):
        length = limit.max_length  # one that was not measured may be as long as is allowed
    shown, measured = max(kept, key=lambda pair: (bool(pair[0].images), pair[1].length))
    sizes = tuple(scaled(image_size(image, recipe.data.max_pixels), measured.scale) for image in shown.images)
    mean_length = sum(measured.length for _, measured in kept) / len(kept)
    mean_answer = sum(measured.trained for _, measured in kept) / len(kept)
    count = round(len(samples) * len(kept) / len(taken))
    return Workload(length, min(longest.trained, length - 1), mean_length, mean_answer, sizes, count, said)


def rows(backbone: Backbone, work: Workload, count: int, answered: bool) -> list[Encoded]:
    """The largest batch: its longest row, and others as they come; their images as the processor makes them, blank.

    Of an encoder-decoder's rows the prompts are as long as samples may be: it is not known which of the two texts is.

    Args:
        backbone: gives the processor.
        work: how long they are.
        count: how many.
        answered: with their answers, which are trained, or the prompts alone.
    """
    if backbone.family.is_encoder_decoder:
        sizes = [(work.length, work.answer), *[(work.mean_length, work.mean_answer)] * (count - 1)]
        seen = backbone.family.stand_in(backbone.processor)
        return [_pair(round(prompt), round(answer), answered, seen) for prompt, answer in sizes]
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


def _pair(prompt: int, answer: int, answered: bool, seen: dict[str, torch.Tensor]) -> Encoded:
    """A row of an encoder-decoder, with what it is given of an image."""
    labels = [2] * max(1, answer) if answered else []
    return Encoded([2] * max(1, prompt), labels, [0] * len(labels), seen, is_pair=True)
