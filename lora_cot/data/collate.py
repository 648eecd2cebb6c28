"""From samples to a batch: images are opened here, in the worker, and nowhere kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lora_cot.data.images import MAX_PIXELS
from lora_cot.data.labels import IGNORE_INDEX, NO_STAGE, Encoded, Encoder, check_trained
from lora_cot.data.lengths import Kept, LengthLimit, Measured
from lora_cot.errors import DataError
from lora_cot.types import Sample

ImageInputs = Callable[[Any, list[Encoded], dict[str, torch.Tensor]], dict[str, torch.Tensor]]
"""What a family's batches need besides text: (processor, encoded samples, padded text) to further model inputs."""


def encode(
    encoder: Encoder,
    sample: Sample,
    training: bool,
    max_pixels: int = MAX_PIXELS,
    scale: float = 1.0,
    like: Encoded | None = None,
    lock: AbstractContextManager[Any] | None = None,
) -> Encoded:
    """One sample as tokens, its images opened.

    Args:
        encoder: turns it into tokens.
        sample: one row.
        training: with its gold answers, or as a prompt.
        max_pixels: limit of an image.
        scale: factor that its images are resized by.
        like: of a prompt, one with the same images, which are not opened again.
        lock: held while the processor works, and not while images are decoded.

    Raises:
        DataError: naming the sample.
    """
    try:
        images = [] if like else [encoder.look(image, max_pixels, scale) for image in sample.images]
        with lock or nullcontext():
            return encoder.training(sample, images) if training else encoder.prompt(sample, images, like)
    except DataError as error:
        raise error.at(sample.id) from None


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> torch.Tensor:
    """(B, T) of the longest row's length T."""
    length = max(map(len, rows))
    filled = [[value] * (length - len(r)) + list(r) if left else list(r) + [value] * (length - len(r)) for r in rows]
    return torch.tensor(filled, dtype=torch.long)


def batch(rows: Sequence[Encoded], processor: Any, image_inputs: ImageInputs, left: bool = False) -> dict[str, torch.Tensor]:
    """Model inputs of encoded samples.

    Args:
        rows: B encoded samples.
        processor: gives the padding token.
        image_inputs: the family's own inputs.
        left: pad on the left, as decoding wants it; training pads on the right.

    Returns:
        input_ids, attention_mask, labels, stage_ids, each (B, T), and the family's image inputs. Of an encoder-decoder
        the last two are as long as its longest target.
    """
    tokenizer = processor.tokenizer
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    text = {
        "input_ids": pad([row.input_ids for row in rows], pad_id, left),
        "attention_mask": pad([[1] * len(row.input_ids) for row in rows], 0, left),
        "labels": pad([row.labels for row in rows], IGNORE_INDEX, left),
        "stage_ids": pad([row.stage_ids for row in rows], NO_STAGE, left),
    }
    return {**text, **image_inputs(processor, list(rows), text)}


def model_inputs(made: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a batch, what a model reads: all but what is trained."""
    return {name: value for name, value in made.items() if name not in ("labels", "stage_ids")}


class Collator:
    """Samples to a training batch, for a DataLoader; picklable, so that workers can decode ahead."""

    def __init__(self, limit: LengthLimit, image_inputs: ImageInputs):
        """
        Args:
            limit: how samples are encoded, and how long they may be.
            image_inputs: the family's own inputs.
        """
        self.limit, self.encoder, self.image_inputs = limit, limit.encoder, image_inputs

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows: each {"sample": Sample}, as `as_dataset` gives them.

        Raises:
            DataError: an image that cannot be opened, a sample without an answer or that is too long.
        """
        encoded = [self.encode(row["sample"], row.get("scale")) for row in rows]
        return batch(encoded, self.encoder.processor, self.image_inputs)

    def encode(self, sample: Sample, scale: float | None = None) -> Encoded:
        """One sample as it will be trained on.

        Args:
            sample: with gold answers.
            scale: factor that its images are resized by; measured if not given.

        Raises:
            DataError: see `__call__`.
        """
        limit = self.limit
        if scale is None:
            scale = limit.measure(sample).scale if limit.max_length is not None else 1.0
        encoded = encode(self.encoder, sample, True, limit.max_pixels, scale)
        measured = Measured(encoded.length - encoded.slots, encoded.slots, scale, encoded.trained)
        if problem := limit.too_long(sample, measured):
            raise DataError(problem)
        check_trained(encoded, sample)
        return encoded


def as_dataset(kept: Kept, is_of_images: bool = True) -> Any:
    """Samples as the `datasets.Dataset` that TRL insists on: numbers in the table, samples looked up when a row is read.

    Args:
        kept: the samples.
        is_of_images: rows have the key `images`, by which TRL tells a data set for a model that takes a chat with images.
    """
    from datasets import Dataset

    def look_up(rows: dict[str, list[int]]) -> dict[str, list[Any]]:
        samples = [kept.samples[number] for number in rows["number"]]
        scales = [kept.scales[number] for number in rows["number"]]
        rows_of: dict[str, list[Any]] = {"sample": samples, "scale": scales}
        return rows_of | ({"images": [sample.images for sample in samples]} if is_of_images else {})

    return Dataset.from_dict({"number": range(len(kept.samples))}).with_transform(look_up)
