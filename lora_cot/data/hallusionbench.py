"""HallusionBench (Guan et al. 2024, arXiv 2310.14566): yes or no, asked of a picture and of its altered copies.

The hub's `lmms-lab/HallusionBench`, its split of questions with an image. A figure has several questions, and a question is
asked of several figures: an id is `CATEGORY_SUBCATEGORY_SET_FIGURE_QUESTION`, as VLMEvalKit has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lora_cot.data.questions import Use, images_of, needed
from lora_cot.data.rows import Collected, Row, StrictRow, checked, gather, not_empty, sample_readers
from lora_cot.data.tables import open_table, table_rows
from lora_cot.types import Exchange, Sample, StoredImage

SPLITS = ("image",)


class HallusionRow(StrictRow):
    """A row; its other columns are left alone."""

    category: str
    subcategory: str
    set_id: str | int
    figure_id: str | int
    question_id: str | int
    question: str
    gt_answer: Literal["0", "1"]
    image: StoredImage | None = None


def questions(path: str, split: str, use: Use) -> Collected:
    """The questions of a split, and what is wrong with those that cannot be asked.

    Raises:
        DataError: the file cannot be read.
    """

    def make(_where: str, row: Row) -> Sample:
        record = checked(HallusionRow, row)
        answer = "yes" if record.gt_answer == "1" else "no"
        about = f"{record.category}_{record.subcategory}_{record.set_id}"
        figure, pair = f"{about}_{record.figure_id}", f"{about}_{record.question_id}"
        meta = {"category": record.category, "subcategory": record.subcategory, "figure": figure, "pair": pair}
        exchange = Exchange(not_empty(record.question, "question").strip(), {"ANSWER": answer}, answer)
        images = images_of(needed(record.image), Path(path), "", use)
        return Sample(f"{figure}_{record.question_id}", (exchange,), images, meta=meta)

    return gather(sample_readers(table_rows(open_table(path, split), path, ("image",)), make))
