"""A-OKVQA (Schwenk et al. 2022): knowledge questions about COCO's images, with four options and ten direct answers.

Its original files are `aokvqa_v1p0_SPLIT.json`, lists of records, and COCO's images `IMAGE_ID.jpg` with twelve digits; the
hub's parquet holds the images, and its lists as texts. Asked with options, the answer is `The answer is (B).`; asked
without, it is the commonest of the ten. Of the three rationales the first is trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pydantic import Field

from lora_cot.data.questions import Use, as_list, images_of, right_option, to_answer, to_train
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
from lora_cot.formats.answers import letter
from lora_cot.recipe.sources import AokvqaSource
from lora_cot.types import Exchange, Sample, StoredImage

SPLITS = ("val", "train")
"""The test split's answers are not published."""
LISTS = ("choices", "direct_answers", "rationales")


class AokvqaRow(StrictRow):
    """A record; its other keys are left alone."""

    question_id: str
    question: str
    choices: list[str]
    correct_choice_idx: int | None = None
    direct_answers: list[str] = Field(default_factory=list)
    difficult_direct_answer: bool = False
    rationales: list[str] = Field(default_factory=list)
    image_id: int | None = None
    image: StoredImage | None = None


def readers(source: AokvqaSource, use: Use, reasons: bool) -> Iterator[SampleReader]:
    """The questions of a split.

    Raises:
        DataError: no such file. Of a row, when it is read: an image that is missing, no right option or direct answer, no
            rationale where there must be one.
    """
    return sample_readers(_rows(source), _maker(source, use, reasons))


rows, questions = to_train(readers), to_answer(readers)


def _rows(source: AokvqaSource) -> Iterator[RowReader]:
    path = Path(source.path)
    file = path if path.suffix == ".json" else path / f"aokvqa_v1p0_{source.split}.json"
    if file.is_file() or not is_table(source.path):
        return read_json_rows(file)
    split = {"val": "validation"}.get(source.split, source.split)
    table = table_rows(open_table(source.path, split), source.path, ("image",))
    return ((where, partial(_listed, read)) for where, read in table)


def _listed(read: Callable[[], Row]) -> Row:
    row = read()
    return {**row, **{key: as_list(row[key]) for key in LISTS if key in row}}


def _maker(source: AokvqaSource, use: Use, reasons: bool) -> Callable[[str, Row], Sample]:
    path = Path(source.path)
    root = source.image_root or (path if path.is_dir() else path.parent)
    direct = source.task == "direct_answer"

    def make(_where: str, row: Row) -> Sample:
        record = checked(AokvqaRow, row)
        gold = right_option(record.correct_choice_idx, record.choices, "correct_choice_idx")
        if direct and not any(text.strip() for text in record.direct_answers):
            raise DataError(Problem("direct_answers", "empty", "ask with options: task: multiple_choice", "empty"))
        rationales = [text.strip() for text in record.rationales if text.strip()]
        if reasons and not rationales:
            raise DataError(Problem("rationales", "empty", "every row needs one", "empty"))
        if record.image is None and record.image_id is None:
            raise DataError(Problem("image_id", "the row has no image", kind="row_form"))
        answer = Counter(record.direct_answers).most_common(1)[0][0] if direct else letter(gold)
        stages = {
            "ANSWER": answer if direct else f"The answer is ({answer}).",
            **({"RATIONALE": rationales[0]} if rationales else {}),
        }
        question = f"{not_empty(record.question, 'question').strip()}\nContext: N/A"
        meta = {
            "gold": gold,
            "rationales": rationales,
            "direct_answers": record.direct_answers,
            "difficult": record.difficult_direct_answer,
        }
        images = images_of(record.image or f"{record.image_id:012}.jpg", root, "", use)
        choices = () if direct else tuple(record.choices)
        return Sample(record.question_id, (Exchange(question, stages, answer),), images, choices, meta)

    return make
