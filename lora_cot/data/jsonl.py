"""Our own plain form, one JSON object a line: `id`, `question`, and `stages` or `answer`; `image` or `images` if any.

`{"id": "7", "image": "7.png", "question": "…", "stages": {"SUMMARY": "…", …}, "answer": "B"}`
"""

from __future__ import annotations

from lora_cot.data.rows import Row, convert, image_files, read_json_rows, text
from lora_cot.errors import DataError, Problem, nearest
from lora_cot.formats import CotFormat
from lora_cot.recipe.schema import JsonlSource
from lora_cot.types import Exchange, Sample

KEYS = ("id", "image", "images", "question", "stages", "answer", "choices")


def load(source: JsonlSource, cot_format: CotFormat) -> list[Sample]:
    """All rows.

    Raises:
        DataError: rows of another form, without an answer, or whose images are missing.
    """
    root = source.image_root or source.path.parent

    def make(where: str, row: Row) -> Sample:
        if unknown := sorted(row.keys() - set(KEYS)):
            raise DataError(Problem(unknown[0], "unknown key", nearest(unknown[0], KEYS)))
        stages, answer = row.get("stages"), row.get("answer")
        if stages is not None and not (isinstance(stages, dict) and all(isinstance(v, str) for v in stages.values())):
            raise DataError(Problem("stages", "expected an object of stage name and text"))
        if answer is not None and not isinstance(answer, str):
            raise DataError(Problem("answer", "expected a text"))
        if not stages and not answer:
            raise DataError(Problem("", "the row has no answer", "give it 'stages' or 'answer'"))
        names = row.get("images") or ([row["image"]] if row.get("image") else [])
        if answer is None and stages:
            answer = stages.get(cot_format.answer_stage.name)
        exchange = Exchange(text(row, "question"), stages=stages, answer=answer)
        return Sample(str(row.get("id", where)), (exchange,), image_files(names, root), tuple(row.get("choices") or ()))

    return convert(read_json_rows(source.path), make, source.limit)
