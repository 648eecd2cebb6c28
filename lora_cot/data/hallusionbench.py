"""HallusionBench (Guan et al. 2024, arXiv 2310.14566): yes or no, asked of a picture and of its altered copies, or of none.

The authors' `HallusionBench.json` with the figures beside it, or the hub's `lmms-lab/HallusionBench`, which keeps questions
without a figure in a split of their own. A figure has several questions, and a question is asked of several figures: an id is
`CATEGORY_SUBCATEGORY_SET_FIGURE_QUESTION`, as VLMEvalKit has it. The paper's figures are of all questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field

from lora_cot.data.questions import Use, images_of, needed
from lora_cot.data.rows import Collected, Row, RowReader, StrictRow, checked, gather, not_empty, read_json_rows, sample_readers
from lora_cot.data.tables import open_table, table_rows
from lora_cot.errors import DataError
from lora_cot.types import Exchange, Sample, StoredImage

SPLITS = ("image", "non_image", "all")
FIGURES = "hallusion_bench"
"""Folder of the figures, as it is published."""


class HallusionRow(StrictRow):
    """A row; its other columns are left alone."""

    category: str
    subcategory: str
    visual_input: Literal["0", "1", "2"]
    """0: without a figure; 1: with it as it was found; 2: with one that was made of that."""
    set_id: str | int
    figure_id: str | int
    question_id: str | int
    question: str
    gt_answer: Literal["0", "1"]
    image: str | StoredImage | None = Field(None, validation_alias=AliasChoices("image", "filename"))


def figure_of(sample: Sample) -> str | None:
    """The name of the figure that a question is asked of; None: of none."""
    return None if sample.meta["figure"] is None else str(sample.meta["figure"])


def questions(path: str, split: str, use: Use) -> Collected:
    """The questions of a split, and what is wrong with those that cannot be asked.

    Raises:
        DataError: a file cannot be read.
    """
    file = Path(path) if path.endswith(".json") else Path(path) / "HallusionBench.json"
    root = file.parent / FIGURES if (file.parent / FIGURES).is_dir() else file.parent

    def make(_where: str, row: Row) -> Sample:
        record = checked(HallusionRow, row)
        answer = "yes" if record.gt_answer == "1" else "no"
        about = f"{record.category}_{record.subcategory}_{record.set_id}"
        figure, pair = f"{about}_{record.figure_id}", f"{about}_{record.question_id}"
        is_seen = record.visual_input != "0"
        meta = {"category": record.category, "subcategory": record.subcategory, "figure": figure if is_seen else None}
        exchange = Exchange(not_empty(record.question, "question").strip(), {"ANSWER": answer}, answer)
        images = images_of(_place(needed(record.image)), root, "", use) if is_seen else ()
        return Sample(f"{figure}_{record.question_id}", (exchange,), images, meta={**meta, "pair": pair})

    return gather(sample_readers(_original(file, split) if file.is_file() else _tables(path, split), make))


def _place(cell: str | StoredImage) -> str | StoredImage:
    """Of a figure in the folder of all: its name begins with that folder in one of the published files, not in the other."""
    return cell.removeprefix("./").removeprefix(f"{FIGURES}/") if isinstance(cell, str) else cell


def _original(file: Path, split: str) -> Iterator[RowReader]:
    """The rows of a split in the authors' file, where `visual_input` tells them apart; one that tells nothing is in each."""
    left_out = {"image": ("0",), "non_image": ("1", "2"), "all": ()}[split]
    return ((where, read) for where, read in read_json_rows(file) if _visual_input(read) not in left_out)


def _visual_input(read: Callable[[], Row]) -> object:
    try:
        return read().get("visual_input")
    except DataError:  # told when the row is read as a question
        return None


def _tables(path: str, split: str) -> Iterator[RowReader]:
    names = SPLITS[:2] if split == "all" else (split,)
    return chain.from_iterable(table_rows(open_table(path, name), path, ("image",)) for name in names)
