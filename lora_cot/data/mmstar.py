"""MMStar (Chen et al. 2024, arXiv 2403.20330): 1,500 questions that nobody can answer without the image, of six core skills.

The hub's `Lin-Chen/MMStar`, its `mmstar.parquet`, or VLMEvalKit's TSV. A question holds its options in its own text, in one of
several spellings, and is asked as it stands; they are told apart here only to know an answer that is given in their words.
Where it holds none, those of the columns A to D are asked with it.
"""

from __future__ import annotations

import re
from pathlib import Path

from lora_cot.data.questions import Use, needed, right_letter
from lora_cot.data.rows import Collected, Row, StrictRow, checked, gather, not_empty, sample_readers
from lora_cot.data.tables import open_table, table_rows
from lora_cot.formats.answers import letter
from lora_cot.types import Exchange, Sample, StoredImage

SPLITS = ("val",)
MARK = re.compile(r"(?:^|(?<=[\s,]))\(?([A-H])[):.]\s")


class MmstarRow(StrictRow):
    """A row; its other columns are left alone."""

    index: int | str
    question: str
    answer: str
    category: str
    l2_category: str
    A: str | None = None
    B: str | None = None
    C: str | None = None
    D: str | None = None
    image: StoredImage | None = None


def questions(path: str, split: str, use: Use) -> Collected:
    """All questions, and what is wrong with those that cannot be asked.

    Raises:
        DataError: the file cannot be read.
    """
    named = Path(path) / "mmstar.parquet"
    table = open_table(str(named) if named.is_file() else path, split)

    def make(_where: str, row: Row) -> Sample:
        record = checked(MmstarRow, row)
        options, choices = options_in(record.question), columns_of(record)
        if any(options):
            choices = ()  # the question holds them: they are not given twice
        options = choices or options
        gold = right_letter(record.answer.strip(), [option or "?" for option in options])
        meta = {"gold": gold, "options": options, "skill": record.category, "axis": record.l2_category}
        exchange = Exchange(not_empty(record.question, "question").strip(), {"ANSWER": letter(gold)}, letter(gold))
        images = (needed(record.image),)
        return Sample(str(record.index), (exchange,), images, choices, meta)

    return gather(sample_readers(table_rows(table, path, ("image",)), make))


def columns_of(record: MmstarRow) -> tuple[str, ...]:
    """The options that stand in columns of their own."""
    cells = ((cell or "").strip() for cell in (record.A, record.B, record.C, record.D))
    return tuple(cell for cell in cells if cell and cell != "nan")


def options_in(question: str) -> tuple[str, ...]:
    """The options that a question's text ends with; four without text where they cannot be told apart: letters count."""
    lists = re.split(r"(?:Options|Choices):", question)
    marks = [*MARK.finditer(lists[-1])] if len(lists) > 1 else []
    if len(marks) < 2 or [mark.group(1) for mark in marks] != [letter(index) for index in range(len(marks))]:
        return ("",) * 4
    ends = [*(mark.start() for mark in marks[1:]), len(lists[-1])]
    return tuple(lists[-1][mark.end() : end].strip().rstrip(",").strip() for mark, end in zip(marks, ends, strict=True))
