"""MMMU (Yue et al. 2024), Multimodal-CoT's benchmark without training: the hub's parquet, one folder a subject.

`hf download MMMU/MMMU --repo-type dataset --local-dir FOLDER` makes such a folder. A question speaks of its images as
`<image 1>` to `<image 7>`; these words stay in it, and the images come before it in that order. Only questions with
options are used; open ones, about 6 % of the validation split, are counted as left out.
"""

from __future__ import annotations

import re

from lora_cot.data.questions import Use, as_list, right_letter
from lora_cot.data.rows import Collected, Row, StrictRow, checked, gather, not_empty, sample_readers
from lora_cot.data.tables import open_table, table_rows
from lora_cot.errors import DataError, Problem
from lora_cot.formats.answers import letter
from lora_cot.types import Exchange, Sample, StoredImage

SPLITS = ("validation", "dev")
"""The test split's answers are not published."""
IMAGES = tuple(f"image_{number}" for number in range(1, 8))


class MmmuRow(StrictRow):
    """A row; its other columns are left alone."""

    id: str
    question: str
    options: list[str]
    answer: str
    question_type: str = "multiple-choice"
    topic_difficulty: str = ""
    image_1: StoredImage | None = None
    image_2: StoredImage | None = None
    image_3: StoredImage | None = None
    image_4: StoredImage | None = None
    image_5: StoredImage | None = None
    image_6: StoredImage | None = None
    image_7: StoredImage | None = None


def questions(path: str, split: str, _use: Use) -> Collected:
    """The questions of a split with options, and why the others are none.

    Raises:
        DataError: the files cannot be read.
    """
    rows = table_rows(open_table(path, split), path, IMAGES)
    return gather(sample_readers(rows, _make))


def _make(_where: str, row: Row) -> Sample:
    record = checked(MmmuRow, {**row, "options": as_list(row.get("options"))})
    if record.question_type != "multiple-choice":
        raise DataError(Problem(record.id, "an open question", "only questions with options are scored"))
    gold = right_letter(record.answer, record.options)
    images = tuple(image for name in IMAGES if (image := getattr(record, name)) is not None)
    subject = re.sub(r"^[a-z]+_(.*)_\d+$", r"\1", record.id)
    exchange = Exchange(
        not_empty(record.question, "question").strip(), {"ANSWER": f"The answer is ({letter(gold)})."}, letter(gold)
    )
    meta = {"gold": gold, "subject": subject, "difficulty": record.topic_difficulty, "rationales": []}
    return Sample(record.id, (exchange,), images, tuple(record.options), meta)
