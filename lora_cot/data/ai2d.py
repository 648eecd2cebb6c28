"""AI2D (Kembhavi et al. 2016): questions with four options about diagrams, from the hub's `lmms-lab/ai2d`.

Its rows have no ids: a row's number is its id. `lmms-lab/ai2d-no-mask` has the same form, and is easier: the labels in its
diagrams are not covered. LLaVA-CoT's first version was measured on that by mistake (its authors' note of January 2025).
"""

from __future__ import annotations

from lora_cot.data.questions import Use, needed, right_option
from lora_cot.data.rows import Collected, Row, StrictRow, checked, gather, not_empty, sample_readers
from lora_cot.data.tables import open_table, table_rows
from lora_cot.formats.answers import letter
from lora_cot.types import Exchange, Sample, StoredImage

SPLITS = ("test",)


class Ai2dRow(StrictRow):
    """A row."""

    question: str
    options: list[str]
    answer: str
    """Index of the right option."""
    image: StoredImage | None = None


def questions(path: str, split: str, use: Use) -> Collected:
    """All questions, and what is wrong with those that cannot be asked.

    Raises:
        DataError: the file cannot be read.
    """

    def make(where: str, row: Row) -> Sample:
        record = checked(Ai2dRow, row)
        gold = right_option(int(record.answer) if record.answer.isdecimal() else None, record.options, "answer")
        exchange = Exchange(not_empty(record.question, "question").strip(), {"ANSWER": letter(gold)}, letter(gold))
        images = (needed(record.image),)
        return Sample(where.rpartition(" ")[2], (exchange,), images, tuple(record.options), {"gold": gold})

    return gather(sample_readers(table_rows(open_table(path, split), path, ("image",)), make))
