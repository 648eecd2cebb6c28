"""How long samples are once their image slots are expanded, and what happens to those that are too long.

Lengths come from the text and the images' headers: no image is decoded for them. Nothing is ever cut: a cut could go
through an image's slots or take away the last closing tag.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from lora_cot.data.images import MAX_PIXELS, MIN_SIDE, image_size
from lora_cot.data.labels import Encoder
from lora_cot.data.rows import shortened
from lora_cot.errors import DataError, Problem
from lora_cot.types import Sample

Policy = Literal["error", "drop", "shrink_image"]
SHRINK = 0.9
"""Images are made smaller by this factor, again and again, until their sample fits."""


@dataclass(frozen=True)
class LengthLimit:
    """What a sample may be, and how its images are counted."""

    encoder: Encoder
    image_tokens: Callable[[Any, Sequence[tuple[int, int]]], list[int]]
    """See `Family.image_tokens`."""
    max_length: int | None = None
    """In tokens, image slots expanded."""
    policy: Policy = "error"
    max_pixels: int = MAX_PIXELS

    def measure(self, sample: Sample) -> Measured:
        """A sample's length, and what must be done to its images.

        Raises:
            DataError: an image cannot be read, or a stage has no text.
        """
        try:
            sizes = [image_size(image, self.max_pixels) for image in sample.images]
            text, trained = self.encoder.count(sample)
        except DataError as error:
            raise error.at(sample.id) from None
        images = sum(self._tokens(sizes))
        scale = 1.0
        if sizes and self.max_length is not None and text + images > self.max_length and self.policy == "shrink_image":
            scale = self._scale(sizes, self.max_length - text)
            images = sum(self._tokens([scaled(size, scale) for size in sizes]))
        return Measured(text, images, scale, trained)

    def too_long(self, sample: Sample, measured: Measured) -> Problem | None:
        """What is wrong with a sample that is too long."""
        limit = self.max_length
        if limit is None or measured.length <= limit:
            return None
        if measured.images > limit:
            what = f"its images alone take {measured.images} tokens, more than training.max_length={limit}"
        else:
            what = f"{measured.length} tokens ({measured.images} of images) are more than training.max_length={limit}"
        remedy = "raise it, or set training.long_samples to drop" if self.policy == "error" else "raise it"
        if self.policy == "error" and measured.images and self._would_shrink(sample, limit - measured.text):
            remedy += " or shrink_image"
        return Problem(sample.id, what, remedy, "too_long")

    def _tokens(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        return self.image_tokens(self.encoder.processor, sizes) if sizes else []

    def _would_shrink(self, sample: Sample, room: int) -> bool:
        sizes = [image_size(image, self.max_pixels) for image in sample.images]
        scale = self._scale(sizes, room)
        return sum(self._tokens([scaled(size, scale) for size in sizes])) <= room

    def _scale(self, sizes: Sequence[tuple[int, int]], room: int) -> float:
        """The largest tried factor at which the images fit into the room; the smallest possible if none does."""
        scale = 1.0
        while sum(self._tokens([scaled(size, scale) for size in sizes])) > room:
            if min(min(size) for size in sizes) * scale * SHRINK < MIN_SIDE:
                break
            scale *= SHRINK
        return scale


@dataclass(frozen=True)
class Measured:
    """A sample's length in tokens."""

    text: int
    images: int
    scale: float
    """Factor that its images are resized by."""
    trained: int
    """Those of the text that carry loss."""

    @property
    def length(self) -> int:
        """All of it."""
        return self.text + self.images


@dataclass(frozen=True)
class Kept:
    """The samples that are trained on."""

    samples: list[Sample]
    lengths: list[int]
    scales: list[float]
    """Factors that their images are resized by."""
    dropped: list[str]
    """Ids of the samples that were too long."""

    @property
    def shrunk(self) -> int:
        """Samples whose images are made smaller."""
        return sum(scale < 1 for scale in self.scales)


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Width and height after resizing."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def keep_fitting(samples: Sequence[Sample], limit: LengthLimit, what: str, workers: int = 0) -> Kept:
    """Measure all samples, and drop those that are too long, or that no smaller image would fit, if that is the policy.

    Args:
        samples: with gold answers.
        limit: of a sample.
        what: the recipe's key of these samples.
        workers: processes that measure; 0 does it in this one.

    Raises:
        DataError: samples that are too long, or that cannot be read; all of them.
    """
    measured, problems = _measure_all(samples, limit, what, workers)
    kept, dropped = [], []
    for number, found in enumerate(measured):
        if found is None:
            continue
        problem = limit.too_long(samples[number], found)
        if problem is None:
            kept.append(number)
        elif limit.policy == "error":
            problems.append(problem)
        else:
            dropped.append(samples[number].id)
    with_images = [found.images for found in measured if found is not None and found.images]
    if with_images and kept and not any(samples[number].images for number in kept):
        lost = f"every sample with an image is longer than training.max_length={limit.max_length}"
        problems.append(Problem("", f"{lost}: images take at least {min(with_images)} tokens", "raise it"))
    if problems:
        raise DataError(shortened(problems)).at(what)
    chosen = [(samples[number], found) for number in kept if (found := measured[number]) is not None]
    lengths, scales = [found.length for _, found in chosen], [found.scale for _, found in chosen]
    return Kept([sample for sample, _ in chosen], lengths, scales, dropped)


def _measure_all(
    samples: Sequence[Sample], limit: LengthLimit, what: str, workers: int
) -> tuple[list[Measured | None], list[Problem]]:
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    loader: Any = DataLoader(samples, batch_size=64, collate_fn=partial(_measure, limit), num_workers=workers)  # type: ignore[arg-type]
    measured: list[Measured | None] = []
    problems: list[Problem] = []
    quiet = len(samples) < 2000
    with tqdm(total=len(samples), desc=f"measuring {what}", file=sys.stderr, mininterval=5, disable=quiet) as bar:
        for chunk in loader:
            for item in chunk:
                measured.append(None if isinstance(item, DataError) else item)
                problems += item.problems if isinstance(item, DataError) else []
            bar.update(len(chunk))
    return measured, problems


def _measure(limit: LengthLimit, chunk: list[Sample]) -> list[Measured | DataError]:
    found: list[Measured | DataError] = []
    for sample in chunk:
        try:
            found.append(limit.measure(sample))
        except DataError as error:
            found.append(error)
    return found
