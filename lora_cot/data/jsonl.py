"""Our own plain form, one JSON object a line: `id`, `question`, and `stages` or `answer`; `image` or `images` if any.

`{"id": "7", "image": "7.png", "question": "…", "stages": {"SUMMARY": "…", …}, "answer": "B"}`
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ConfigDict

from lora_cot.data.rows import (
    SLOT,
    Row,
    SampleReader,
    StrictRow,
    checked,
    image_files,
    not_empty,
    read_json_rows,
    sample_readers,
)
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.recipe.sources import JsonlSource
from lora_cot.types import Exchange, Sample


class JsonlRow(StrictRow):
    """Every key of a row."""

    model_config = ConfigDict(extra="forbid")

    question: str
    image: str | None = None
    images: list[str] | None = None
    stages: dict[str, str] | None = None
    answer: str | None = None
    choices: tuple[str, ...] | list[str] = ()


def rows(source: JsonlSource, cot_format: CotFormat) -> Iterator[SampleReader]:
    """All rows.

    Raises:
        DataError: no such file. Of a row, when it is read: another form, no answer, an image that is missing.
    """
    root = source.image_root or source.path.parent

    def make(where: str, row: Row) -> Sample:
        record = checked(JsonlRow, row)
        if record.image is not None and record.images is not None:
            raise DataError(Problem("image", "the row has 'image' and 'images'", "give one of them", "row_form"))
        if not record.stages and not record.answer:
            raise DataError(Problem("", "the row has no answer", "give it 'stages' or 'answer'", "empty"))
        names = record.images or ([record.image] if record.image else [])
        answer = record.answer or cot_format.short_answer(record.stages or {})
        exchange = Exchange(not_empty(record.question, "question"), stages=record.stages, answer=answer)
        name = where if record.id is None else str(record.id)
        slots = len(SLOT.findall(record.question))
        return Sample(name, (exchange,), image_files(names, root), tuple(record.choices), slots=slots)

    return sample_readers(read_json_rows(source.path), make)
