"""The plain values that travel along the line: a sample, and nothing that needs torch to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StoredImage:
    """An image inside a table on disk: its bytes are read when it is opened, and kept nowhere."""

    rows: Any
    """A `datasets.Dataset`."""
    row: int
    column: str
    place: int | None = None
    """Its place in the row's list of images."""

    def read(self) -> bytes:
        """The bytes of the image's file."""
        value = self.rows[self.row][self.column]
        return (value if self.place is None else value[self.place])["bytes"]


Image = Path | bytes | StoredImage
"""An image that is not decoded yet: a file, the bytes of one, or where to find them."""


@dataclass(frozen=True)
class Exchange:
    """One question and, as far as it is known, its gold answer."""

    question: str
    stages: Mapping[str, str] | None = None
    """Gold text by stage name."""
    answer: str | None = None
    """The short answer that a benchmark compares with."""


@dataclass(frozen=True)
class Sample:
    """One row of any data source. Images belong to the first exchange; the last exchange is the one asked."""

    id: str
    exchanges: tuple[Exchange, ...]
    images: tuple[Image, ...] = ()
    choices: tuple[str, ...] = ()
    meta: Mapping[str, object] = field(default_factory=dict)
    """Fields that only a benchmark reads: skill, grade, number of steps."""
    slots: int = 0
    """Places of images that the row's own text marks; 0 where it marks none. The images are shown whatever it says."""
    preface: tuple[str | None, ...] = ()
    """What the prompt shows before the first question, texts and images in turn; None is the next of `images`."""

    @property
    def own_images(self) -> tuple[Image, ...]:
        """The images that the question is about: those that the preface leaves."""
        return self.images[self.preface.count(None) :]

    @property
    def last(self) -> Exchange:
        """The exchange that is asked when a model answers this sample."""
        return self.exchanges[-1]

    def with_stages(self, texts: Mapping[str, str]) -> Sample:
        """The sample with these texts as stages of its last exchange, in place of the gold ones."""
        last = replace(self.last, stages={**(self.last.stages or {}), **texts})
        return replace(self, exchanges=(*self.exchanges[:-1], last))
