"""What a model was shown again while it wrote: each stretch of its text with the patches that came after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_cot.engines.interleave import Patch, Shown
from lora_cot.search.trace import TracedStage

Area = tuple[float, float, float, float]
"""What of an image its patches cover: left, top, right and bottom, as shares of its width and height."""
WHOLE: Area = (0.0, 0.0, 1.0, 1.0)
NAMED = 16
"""Patches that are told in words; of more, only their number."""


@dataclass(frozen=True)
class Cell:
    """A patch on its image, in shares of its width and height."""

    left: float
    top: float
    width: float
    height: float
    said: str


@dataclass(frozen=True)
class Picture:
    """An image with the patches that are lit on it."""

    uri: str
    cells: tuple[Cell, ...]
    said: str
    """All of it in words, for those who see no picture."""


@dataclass(frozen=True)
class Stretch:
    """A text, and what was shown after it."""

    text: str
    pictures: tuple[Picture, ...]


def stretches(steps: Sequence[TracedStage], images: Sequence[str], areas: Sequence[Area] = ()) -> list[Stretch]:
    """The returned text, cut where the model looked; nothing if it never did.

    Args:
        steps: of a search.
        images: data URIs.
        areas: of each image; all of it if not given.
    """
    found, rest = [], ""
    for candidate in (one for step in steps for one in step.candidates if one.chosen):
        begin = 0
        for shown in candidate.looks:
            found.append(Stretch(rest + candidate.text[begin : shown.place], _pictures(shown, images, areas)))
            rest, begin = "", shown.place
        rest += candidate.text[begin:]
    return [*found, Stretch(rest, ())] if found and rest.strip() else found


def _pictures(shown: Shown, images: Sequence[str], areas: Sequence[Area]) -> tuple[Picture, ...]:
    weights: Sequence[float | None] = shown.weights or [None] * len(shown.patches)
    pictures = []
    for number in sorted({patch.image for patch in shown.patches}):
        area = areas[number] if areas else WHOLE
        mine = [pair for pair in zip(shown.patches, weights, strict=True) if pair[0].image == number]
        cells = tuple(_cell(patch, shown.grids[number], area, weight) for patch, weight in mine)
        named = "; ".join(cell.said for cell in cells[:NAMED]) + f"; and {len(cells) - NAMED} more" * (len(cells) > NAMED)
        rows, columns = shown.grids[number]
        said = f"Image {number + 1}, lit of its {rows} rows and {columns} columns: {named}"
        pictures.append(Picture(images[number], cells, said))
    return tuple(pictures)


def _cell(patch: Patch, grid: tuple[int, int], area: Area, weight: float | None) -> Cell:
    left, top, right, bottom = area
    width, height = (right - left) / grid[1], (bottom - top) / grid[0]
    said = f"row {patch.row + 1}, column {patch.column + 1}"
    said += "" if weight is None else f" ({weight:.1%} of the attention)"
    return Cell(left + patch.column * width, top + patch.row * height, width, height, said)
