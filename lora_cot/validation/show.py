"""Samples as the model will see them: images with their number of tokens, and the text with what is trained marked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from lora_cot.backbones.loading import limit_of, load_processor
from lora_cot.data.collate import encode
from lora_cot.data.images import open_image
from lora_cot.data.labels import Encoded, Encoder
from lora_cot.data.lengths import LengthLimit, scaled
from lora_cot.data.sources import rows_of
from lora_cot.errors import DataError, Problem, RunError
from lora_cot.pages import image_uri, render
from lora_cot.recipe import Recipe
from lora_cot.types import Sample
from lora_cot.validation.checks import told
from lora_cot.validation.report import printable


@dataclass(frozen=True)
class Span:
    """A piece of a sample's text, all of it trained or none."""

    text: str
    trained: bool


@dataclass(frozen=True)
class ShownPass:
    """A sample as one pass of the format writes it."""

    name: str
    spans: Sequence[Span]
    tokens: int
    trained: int
    problem: str = ""
    """Why training would not take it as it is."""


@dataclass(frozen=True)
class ShownImage:
    """An image with what it costs."""

    image: PILImage.Image
    size: tuple[int, int]
    """As it is shown to the model; smaller than the file's where long_samples is shrink_image."""
    tokens: int

    def __str__(self) -> str:
        width, height = self.size
        shrunk = "" if self.size == self.image.size else f", made smaller from {self.image.width}×{self.image.height}"
        return f"{width}×{height} pixels → {self.tokens} tokens{shrunk}"


@dataclass(frozen=True)
class ShownRow:
    """A row of the data."""

    where: str
    id: str
    images: Sequence[ShownImage] = ()
    passes: Sequence[ShownPass] = ()
    problem: str = ""
    """Why it cannot be shown."""

    def to_json(self) -> dict[str, Any]:
        """It as --json prints it."""
        images = [{"width": i.size[0], "height": i.size[1], "tokens": i.tokens} for i in self.images]
        passes = [
            {
                "name": one.name,
                "tokens": one.tokens,
                "trained": one.trained,
                "spans": [{"text": span.text, "trained": span.trained} for span in one.spans],
                "problem": one.problem or None,
            }
            for one in self.passes
        ]
        return {"row": self.where, "id": self.id, "images": images, "passes": passes, "problem": self.problem or None}

    def lines(self) -> list[str]:
        """For the terminal, trained text between ⟦ and ⟧."""
        name = f" ({printable(self.id)})" if self.id not in ("", self.where) else ""
        found = [f"── {printable(self.where)}{name}"]
        if self.problem:
            found.append(f"cannot be shown: {printable(self.problem)}")
        found += [f"image {number}: {image}" for number, image in enumerate(self.images, 1)]
        for one in self.passes:
            found.append(f"{one.name}: {one.tokens:,} tokens, {one.trained:,} of them trained")
            found += [f"not trained on: {printable(one.problem)}"] if one.problem else []
            found += [printable(line, len(line)) for line in mark_trained(one.spans).split("\n")]
        return [*found, ""]


def show_samples(recipe: Recipe, count: int) -> list[ShownRow]:
    """So many samples of what is trained on, evenly spread over its rows.

    Raises:
        BackboneError, DataError: the base has no processor that can be used; there is no row.
    """
    family, processor = load_processor(recipe.model)
    cot_format = recipe.format.build().spelled(family.tag_style)
    limits = [limit_of(recipe, family, processor, one) for one in cot_format.passes]

    def rows() -> Any:
        return itertools.chain.from_iterable(rows_of(section, cot_format) for section in recipe.data.train)

    total = sum(1 for _ in rows())
    if not total:
        raise DataError(Problem("data.train", "there is nothing to show", "name at least one source"))
    wanted = {number * total // count for number in range(min(count, total))} if count < total else range(total)
    return [_shown(where, read, limits) for number, (where, read) in enumerate(rows()) if number in wanted]


def _shown(where: str, read: Callable[[], Sample], limits: Sequence[LengthLimit]) -> ShownRow:
    name = ""
    try:
        sample = read()
        name = sample.id
        images = [open_image(image, limits[0].max_pixels) for image in sample.images]
        scale = limits[0].measure(sample).scale
        sizes = [scaled(image.size, scale) if scale != 1 else image.size for image in images]
        tokens = limits[0].image_tokens(limits[0].encoder.processor, sizes) if sizes else []
        return ShownRow(
            where,
            name,
            [ShownImage(*item) for item in zip(images, sizes, tokens, strict=True)],
            [_pass(sample, limit) for limit in limits],
        )
    except DataError as error:
        name = name or error.problems[0].row
        return ShownRow(where, name, problem="; ".join(told(problem, where) for problem in error.problems))


def _pass(sample: Sample, limit: LengthLimit) -> ShownPass:
    measured = limit.measure(sample)
    encoded = encode(limit.encoder, sample, True, limit.max_pixels, measured.scale)
    problem = limit.too_long(sample, measured)
    text = spans(encoded, limit.encoder)
    tokens = len(encoded.input_ids) + encoded.trained * encoded.is_pair
    return ShownPass(limit.encoder.format.name, text, tokens, measured.trained, str(problem or ""))


def spans(encoded: Encoded, encoder: Encoder) -> list[Span]:
    """The text of a sample, cut where training begins or ends; an image's slots are one word."""
    if encoded.is_pair:
        texts = (encoded.input_ids, encoded.labels)
        prompt, answer = (encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in texts)
        return [Span(f"{prompt}\n", False), Span(answer, True)]
    found: list[Span] = []
    image_token = encoder.processor.image_token
    slot = encoder.tokenizer.convert_tokens_to_ids(image_token)
    kinds = [(label >= 0, token == slot) for token, label in zip(encoded.input_ids, encoded.labels, strict=True)]
    start = 0
    for (trained, is_image), group in itertools.groupby(kinds):
        count = len(list(group))
        if is_image:
            text = f"{image_token}×{count}"
        else:
            text = encoder.tokenizer.decode(encoded.input_ids[start : start + count], clean_up_tokenization_spaces=False)
        if found and found[-1].trained == trained:
            text = found.pop().text + text
        found.append(Span(text, trained))
        start += count
    return found


def mark_trained(pieces: Sequence[Span]) -> str:
    """The text of a sample, trained parts between ⟦ and ⟧."""
    return "".join(f"⟦{span.text}⟧" if span.trained else span.text for span in pieces)


def write_page(samples: Sequence[ShownRow], recipe: Recipe, path: Path) -> None:
    """Samples as a page with thumbnails; it opens offline.

    Raises:
        RunError: the page cannot be written.
    """
    pictures = [[image_uri(image.image) for image in sample.images] for sample in samples]
    title = f"Samples of {recipe.name}"
    page = render("samples.html", title=title, base=recipe.model.base, samples=list(zip(samples, pictures, strict=True)))
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunError(Problem(str(path), f"cannot be written: {error.strerror}", "name another file with --html")) from None
