"""MMBench (Liu et al. 2023, arXiv 2307.06281): questions with two to four options, asked under every rotation of them.

VLMEvalKit's TSV (`MMBench_DEV_EN.tsv` and the like) or the hub's `lmms-lab/MMBench`. Both hold each question once for each
rotation, with `index` plus a multiple of a million; where a file has none, they are made. The test split's answers are not
published.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import AliasChoices, Field

from lora_cot.data.questions import Use, needed, right_letter
from lora_cot.data.rows import Collected, Row, StrictRow, checked, gather, not_empty, sample_readers
from lora_cot.data.tables import open_table, table_rows
from lora_cot.errors import DataError, Problem
from lora_cot.formats.answers import letter
from lora_cot.types import Exchange, Sample, StoredImage

SPLITS = ("dev_en", "dev_cn")
ROTATION = 1_000_000
"""What is added to a question's index for each further rotation of its options."""


class MmbenchRow(StrictRow):
    """A row; its other columns are left alone. Cells without a value are empty, `nan` or null."""

    index: int | str
    question: str
    hint: str | None = None
    A: str
    B: str
    C: str | None = None
    D: str | None = None
    answer: str
    category: str
    ability: str = Field("", validation_alias=AliasChoices("L2-category", "l2-category"))
    image: StoredImage | None = None


def questions(path: str, split: str, use: Use) -> Collected:
    """The questions of a split, each followed by its rotations, and what is wrong with those that cannot be asked.

    Raises:
        DataError: the file cannot be read.
    """
    name, _, language = split.partition("_")
    table = open_table(path, name, language)

    def make(_where: str, row: Row) -> Sample:
        record = checked(MmbenchRow, row)
        if not str(record.index).isdecimal():
            raise DataError(Problem("index", f"{record.index!r} is no number", kind="row_form"))
        choices = [text for text in (_text(cell) for cell in (record.A, record.B, record.C, record.D)) if text]
        gold = right_letter(record.answer, choices)
        hint = f"Hint: {_text(record.hint)}\n" if _text(record.hint) else ""
        exchange = Exchange(hint + not_empty(record.question, "question").strip(), {"ANSWER": letter(gold)}, letter(gold))
        meta = {"gold": gold, "question": int(record.index) % ROTATION, "category": record.category, "ability": record.ability}
        images = (needed(record.image),)
        return Sample(str(record.index), (exchange,), images, tuple(choices), meta)

    found = gather(sample_readers(table_rows(table, path, ("image",)), make))
    first = [sample for sample in found.samples if is_first(sample)]
    if len(first) == len(found.samples):
        return replace(found, samples=[_rotated(sample, by) for sample in first for by in range(len(sample.choices))])
    return replace(found, samples=sorted(found.samples, key=lambda sample: (sample.meta["question"], int(sample.id))))


def is_first(sample: Sample) -> bool:
    """Whether its options stand as they were written."""
    return int(sample.id) < ROTATION


def _text(cell: str | None) -> str:
    return "" if cell is None or cell.strip() == "nan" else cell.strip()


def _rotated(sample: Sample, by: int) -> Sample:
    choices = sample.choices[by:] + sample.choices[:by]
    gold = (int(str(sample.meta["gold"])) - by) % len(choices)
    exchange = replace(sample.last, stages={"ANSWER": letter(gold)}, answer=letter(gold))
    name = str(int(sample.id) + by * ROTATION)
    return replace(sample, id=name, exchanges=(exchange,), choices=choices, meta={**sample.meta, "gold": gold})
