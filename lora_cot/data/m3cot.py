"""M3CoT (Chen et al. 2024, arXiv 2405.16473): questions whose every reasoning chain needs the image more than once.

Its original files are `train.jsonl`, `dev.jsonl` and `test.jsonl`, with the images `images/ID.png` beside them; the hub's
parquet holds the images, and calls `dev` `validation`. A record names its image by a path of its authors' machine: only the
last part of it counts. The question's `Context:` stands below it where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from lora_cot.data.questions import Use, image_folder, images_of, right_letter, to_answer, to_train
from lora_cot.data.rows import (
    Row,
    RowReader,
    SampleReader,
    StrictRow,
    checked,
    not_empty,
    read_json_rows,
    sample_readers,
)
from lora_cot.data.tables import is_table, open_table, table_rows
from lora_cot.formats.answers import letter
from lora_cot.recipe.sources import M3cotSource
from lora_cot.types import Exchange, Sample, StoredImage

SPLITS = ("test", "dev", "train")


class M3cotRow(StrictRow):
    """A record; its other keys are left alone."""

    id: str
    question: str
    choices: list[str]
    answer: str
    context: str | None = None
    rationale: str | None = None
    image: str | StoredImage | None = None
    domain: str
    topic: str


def readers(source: M3cotSource, use: Use, reasons: bool) -> Iterator[SampleReader]:
    """The questions of a split.

    Raises:
        DataError: no such file. Of a row, when it is read: an image that is missing, an answer that names no option, no
            rationale where there must be one.
    """
    return sample_readers(_rows(source), _maker(source, use, reasons))


rows, questions = to_train(readers), to_answer(readers)


def _rows(source: M3cotSource) -> Iterator[RowReader]:
    path = Path(source.path)
    file = path if path.suffix == ".jsonl" else path / f"{source.split}.jsonl"
    if file.is_file() or not is_table(source.path):
        return read_json_rows(file)
    split = {"dev": "validation"}.get(source.split, source.split)
    return table_rows(open_table(source.path, split), source.path, ("image",))


def _maker(source: M3cotSource, use: Use, reasons: bool) -> Callable[[str, Row], Sample]:
    root = image_folder(source)

    def make(_where: str, row: Row) -> Sample:
        record = checked(M3cotRow, row)
        gold = right_letter(record.answer, record.choices)
        rationale, context = (record.rationale or "").strip(), (record.context or "").strip()
        if reasons:
            not_empty(rationale, "rationale")
        cell = record.image
        if not isinstance(cell, StoredImage):
            cell = PurePosixPath(cell or f"{record.id}.png").name
        stages = {"RATIONALE": rationale, "ANSWER": f"The answer is ({letter(gold)})."}
        question = not_empty(record.question, "question").strip() + (f"\nContext: {context}" if context else "")
        exchange = Exchange(question, {name: text for name, text in stages.items() if text}, letter(gold))
        meta = {
            "gold": gold,
            "domain": not_empty(record.domain, "domain"),
            "topic": not_empty(record.topic, "topic"),
            "rationales": [rationale] if rationale else [],
        }
        return Sample(record.id, (exchange,), images_of(cell, root, "", use), tuple(record.choices), meta)

    return make
