"""LLaVA-Bench (In-the-Wild) (Liu et al. 2023): 60 open questions about 24 pictures, each with a reference answer of GPT-4.

Its original files are `questions.jsonl` and `answers_gpt4.jsonl` (or the only ones whose names end so), with the pictures in
`images/`; `context.jsonl` is for a judge that does not see, and is not read. The hub's table has both texts in one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from lora_cot.data.questions import Use, image_folder, images_of, needed, to_answer, to_train
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
from lora_cot.errors import DataError, Problem
from lora_cot.recipe.sources import LlavaWildSource
from lora_cot.types import Exchange, Sample, StoredImage

SPLITS = ("test",)
"""All of it; the hub's table calls this split `train`."""
QUESTIONS, ANSWERS = "questions.jsonl", "answers_gpt4.jsonl"


class AnswerRow(StrictRow):
    """A reference answer; its other keys are left alone."""

    question_id: int
    text: str


class LlavaWildRow(StrictRow):
    """A question with its reference answer, in the hub's names; its other columns are left alone."""

    question_id: int | str
    question: str
    category: str
    gpt_answer: str
    image: str | StoredImage | None = None


def readers(source: LlavaWildSource, use: Use, _reasons: bool) -> Iterator[SampleReader]:
    """All questions with their reference answers, which have no reasoning.

    Raises:
        DataError: no such file. Of a row, when it is read: an image or a reference answer that is missing.
    """
    return sample_readers(_rows(source), _maker(source, use))


rows, questions = to_train(readers), to_answer(readers)


def _rows(source: LlavaWildSource) -> Iterator[RowReader]:
    if is_table(source.path):
        return table_rows(open_table(source.path, "train"), source.path, ("image",))
    folder = Path(source.path)
    references = _references(_file(folder, ANSWERS))
    return ((where, partial(_joined, read, references)) for where, read in read_json_rows(_file(folder, QUESTIONS)))


def _file(folder: Path, name: str) -> Path:
    """The file of that name in a folder, or the only one whose name ends so."""
    ending = sorted(folder.glob(f"*{name}"))
    return ending[0] if len(ending) == 1 else folder / name


def _references(path: Path) -> dict[int, str]:
    """Reference answers by the question's id."""
    found: dict[int, str] = {}
    for where, read in read_json_rows(path):
        try:
            record = checked(AnswerRow, read())
        except DataError as error:
            raise error.at(where) from None
        if record.question_id in found:
            raise DataError(Problem(f"{where} · question_id", f"{record.question_id} occurs twice", "keep one of them"))
        found[record.question_id] = record.text
    return found


def _joined(read: Callable[[], Row], references: Mapping[int, str]) -> Row:
    """A question in the hub's names. Only ints are ids there: True would be found as 1."""
    row = read()
    number = row.get("question_id")
    if type(number) is not int or number not in references:
        what = f"there is no reference answer for {number!r}"
        raise DataError(Problem("question_id", what, f"add it to {ANSWERS}, or drop the row", "row_form"))
    return {**row, "question": row.get("text"), "gpt_answer": references[number]}


def _maker(source: LlavaWildSource, use: Use) -> Callable[[str, Row], Sample]:
    root = image_folder(source)

    def make(_where: str, row: Row) -> Sample:
        record = checked(LlavaWildRow, row)
        answer = not_empty(record.gpt_answer, "gpt_answer").strip()
        exchange = Exchange(not_empty(record.question, "question").strip(), {"ANSWER": answer}, answer)
        images = images_of(needed(record.image), root, "", use)
        return Sample(str(record.question_id), (exchange,), images, meta={"category": record.category, "rationales": []})

    return make
