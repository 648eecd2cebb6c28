"""MathVista (Lu et al. 2024, arXiv 2310.02255): 1,000 questions (testmini) with options, or with a number or a list to find.

The hub's `AI4Math/MathVista`. A question is asked by its `query`, which says in what form the answer is wanted and holds the
options. The test split's answers are not published.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field

from lora_cot.data.questions import Use, as_list, needed
from lora_cot.data.rows import Collected, Row, StrictRow, checked, gather, not_empty, sample_readers
from lora_cot.data.tables import open_table, table_rows
from lora_cot.errors import DataError, Problem
from lora_cot.formats.answers import letter
from lora_cot.types import Exchange, Sample, StoredImage

SPLITS = ("testmini",)


class About(BaseModel):
    """What a row says of its question."""

    task: str
    grade: str
    skills: list[str]


class MathvistaRow(StrictRow):
    """A row; its other columns are left alone."""

    pid: str
    query: str
    choices: list[str] | None = None
    precision: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Digits after the point that count, of an answer of the type float."""
    answer: str
    question_type: Literal["multi_choice", "free_form"]
    answer_type: Literal["text", "integer", "float", "list"]
    metadata: About
    image: StoredImage | None = Field(None, validation_alias=AliasChoices("decoded_image"))


def questions(path: str, split: str, use: Use) -> Collected:
    """The questions of a split, and what is wrong with those that cannot be asked.

    Raises:
        DataError: the file cannot be read.
    """

    def make(_where: str, row: Row) -> Sample:
        record = checked(MathvistaRow, {**row, "choices": as_list(row.get("choices"))})
        options = tuple(record.choices or ()) if record.question_type == "multi_choice" else ()
        if record.question_type == "multi_choice" and record.answer not in options:
            raise DataError(Problem("answer", f"{record.answer!r} is none of its options", kind="row_form"))
        gold = options.index(record.answer) if options else None
        answer = not_empty(record.answer, "answer").strip() if gold is None else letter(gold)
        if gold is None and record.answer_type != "list" and not _is_number(answer):
            raise DataError(Problem("answer", f"{answer!r} is no number", kind="row_form"))
        meta = {"gold": gold, "options": options, "type": record.answer_type, "precision": record.precision}
        exchange = Exchange(not_empty(record.query, "query").strip(), {"ANSWER": answer}, answer)
        images = (needed(record.image),)
        return Sample(record.pid, (exchange,), images, meta=meta | record.metadata.model_dump())

    return gather(sample_readers(table_rows(open_table(path, split), path, ("decoded_image",)), make))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
