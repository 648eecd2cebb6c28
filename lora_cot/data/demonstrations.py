"""Worked examples whose reasoning is text and regions of an image in turn (Gao et al. 2024, ICoT, section 3.3).

A YAML or JSON file, `{"demonstrations": […]}`; each has an `image` beside the file, a `question`, `choices` if any, `steps`
and an `answer`. A step is a text or a box, `[left, top, right, bottom]` in pixels of the upright image, right and bottom
outside.

`Preface` is how a prompt shows them: in the first turn, before the question's own image.

Where we differ from the released code: a box is in pixels, not in patches of one model's grid, and boxes may overlap.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image as PILImage
from pydantic import ConfigDict, Field

from lora_cot.data.images import MAX_PIXELS, inside, open_image
from lora_cot.data.rows import StrictRow, checked, not_empty
from lora_cot.errors import DataError, Problem, nearest
from lora_cot.formats import CotFormat
from lora_cot.formats.answers import letter
from lora_cot.formats.step_by_step import STEP_BY_STEP
from lora_cot.recipe.yaml import parse_yaml
from lora_cot.types import Exchange, Image, Sample

KEY = "demonstrations"


class Region(NamedTuple):
    """A part of an image, in pixels of the upright image."""

    left: int
    top: int
    right: int
    """First column outside."""
    bottom: int
    """First row outside."""


@dataclass(frozen=True)
class Demonstration:
    """A question about an image that was answered step by step."""

    image: Path
    question: str
    steps: tuple[str | Region, ...]
    answer: str
    """The option's letter, or, where there are none, a text."""
    choices: tuple[str, ...] = ()

    def cut(self, region: Region, max_pixels: int = MAX_PIXELS) -> PILImage.Image:
        """The region's pixels, upright RGB.

        Raises:
            DataError: see `open_image`.
        """
        return open_image(self.image, max_pixels).crop(region)


@dataclass(frozen=True)
class Preface:
    """Demonstrations as a prompt shows them; see `Sample.preface`."""

    pieces: tuple[str | None, ...]
    images: tuple[Image, ...]

    def before(self, sample: Sample) -> Sample:
        """The sample, with the demonstrations before its question."""
        return replace(sample, preface=self.pieces, images=(*self.images, *sample.images))


def preface(demonstrations: Sequence[Demonstration], cot_format: CotFormat, max_pixels: int = MAX_PIXELS) -> Preface:
    """What stands before a question: each demonstration as it would be asked, its steps where the format reasons, its answer.

    Args:
        demonstrations: in the order in which they are shown.
        cot_format: in which the question is asked.
        max_pixels: limit of each image.

    Raises:
        DataError: the format has stages of its own, in which a demonstration is not written; see `open_image`.
    """
    if cot_format.is_tagged or cot_format.split:
        what = f"no demonstration is written in the stages of the format {cot_format.name}"
        raise DataError(Problem("demonstrations", what, "ask in step_by_step, answer_only or direct"))
    pieces: list[str | None] = []
    images: list[Image] = []
    for one in demonstrations:
        pieces += [None, f"{cot_format.question(Exchange(one.question), one.choices)}\n"]
        images.append(one.image)
        for step in one.steps if cot_format.name == STEP_BY_STEP.name else ():
            pieces.append(f"{step}\n" if isinstance(step, str) else None)
            images += [] if isinstance(step, str) else [_png(one.cut(step, max_pixels))]
        answer = f"({one.answer})" if one.choices else one.answer
        pieces.append(f"{answer}\n\n" if cot_format.name != STEP_BY_STEP.name else f"Answer: {answer}\n\n")
    return Preface(tuple(pieces), tuple(images))


def _png(image: PILImage.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class DemonstrationRow(StrictRow):
    """Every key of a demonstration."""

    model_config = ConfigDict(extra="forbid")

    image: str
    question: str
    choices: list[str] = Field([], max_length=26)
    steps: list[Any] = Field(min_length=1)
    """Texts and boxes."""
    answer: str


def is_demonstrations(path: Path) -> bool:
    """Whether a file says that it holds demonstrations; whether they are any good is for `load_demonstrations`."""
    if path.suffix not in (".yaml", ".yml", ".json") or not path.is_file():
        return False
    with path.open("rb") as file:  # data sets of any size are JSON lists: they are not read here
        if path.suffix == ".json" and not file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            return False
    try:
        value = _value(path)
    except DataError:
        return False
    return isinstance(value, dict) and KEY in value


def load_demonstrations(path: Path, max_pixels: int = MAX_PIXELS) -> list[Demonstration]:
    """The demonstrations of a file, in order.

    Args:
        path: YAML or JSON; images are looked for in its folder.
        max_pixels: limit of each image.

    Raises:
        DataError: no such file, another form, an image that cannot be opened or lies outside the folder, a box outside its
            image or with nothing in it, an answer that names no option; all of them.
    """
    if not path.is_file():
        raise DataError(Problem(str(path), "no such file of demonstrations", "check the path"))
    value = _value(path)
    listed = value.get(KEY) if isinstance(value, dict) else None
    if not isinstance(listed, list) or not listed:
        raise DataError(Problem(f"{path} · {KEY}", "no list of demonstrations", f"expected {KEY}: [{{image, question, …}}]"))
    problems = [Problem(f"{path} · {key}", "unknown key", nearest(str(key), [KEY])) for key in value if key != KEY]
    found: list[Demonstration] = []
    for number, row in enumerate(listed):
        try:
            found.append(_demonstration(row, path.parent, max_pixels))
        except DataError as error:
            problems += error.at(f"{path} · {KEY}.{number}").problems
    if problems:
        raise DataError(problems)
    return found


def _value(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text) if path.suffix == ".json" else parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise DataError(Problem(str(path), f"not {kind}", " ".join(str(error).split()))) from None


def _demonstration(row: Any, folder: Path, max_pixels: int) -> Demonstration:
    if not isinstance(row, dict):
        raise DataError(Problem("", "not a mapping", f"expected {', '.join(DemonstrationRow.model_fields)}"))
    record = checked(DemonstrationRow, {str(key): value for key, value in row.items()})
    problems: list[Problem] = []
    for key, text in (("question", record.question), ("answer", record.answer)):
        try:
            not_empty(text, key)
        except DataError as error:
            problems += error.problems
    size = None
    try:
        image = inside(folder, record.image)
        size = open_image(image, max_pixels).size  # decoded: what is damaged is told now, not in the middle of a run
    except DataError as error:
        problems += error.at("image").problems
    problems += _wrong_choices(record)
    for number, step in enumerate(record.steps):
        what = _wrong_step(step, size)
        problems += [Problem(f"steps.{number}", *what)] if what else []
    if problems:
        raise DataError(problems)
    steps = tuple(step.strip() if isinstance(step, str) else Region(*step) for step in record.steps)
    texts = (choice.strip() for choice in record.choices)
    return Demonstration(image, record.question.strip(), steps, record.answer.strip(), tuple(texts))


def _wrong_choices(record: DemonstrationRow) -> list[Problem]:
    if not record.choices:
        return []
    if len(record.choices) < 2 or not all(choice.strip() for choice in record.choices):
        return [Problem("choices", f"expected 2 to 26 options with text, got {record.choices!r}")]
    letters = [letter(number) for number in range(len(record.choices))]
    if record.answer.strip() and record.answer.strip() not in letters:
        return [Problem("answer", f"{record.answer!r} names no option", f"allowed: {', '.join(letters)}")]
    return []


def _wrong_step(step: Any, size: tuple[int, int] | None) -> tuple[str, str] | None:
    """What is wrong with a step, and the remedy; no box is outside an image whose size is not known."""
    if isinstance(step, str):
        return None if step.strip() else ("empty", "a step is a text or a box")
    if not isinstance(step, list) or len(step) != 4 or not all(type(number) is int for number in step):
        return "neither a text nor a box", "a box is [left, top, right, bottom], whole numbers of pixels"
    left, top, right, bottom = step
    if left >= right or top >= bottom:
        return f"nothing is in the box {step}", "left is less than right, top less than bottom"
    if size is not None and (min(step) < 0 or right > size[0] or bottom > size[1]):
        width, height = size
        return f"the box {step} is not inside its image of {width}×{height} pixels", f"at most [0, 0, {width}, {height}]"
    return None
