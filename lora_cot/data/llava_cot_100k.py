"""LLaVA-CoT-100k in its own form: one JSON object a line with `id`, `image` and `conversations`.

`{"id": …, "image": "path", "conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}`. The
image belongs to the first human turn; `<image>` at either end of a question is dropped, since the image has its slot.
The published loader (`cot_dataset.py` of arXiv 2411.10440) skips rows without an image; here they are text-only rows.
Answers hold the four stages with their tags; for a format that is an answer and nothing else, plain answers serve as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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
from lora_cot.formats.four_stage import FOUR_STAGE
from lora_cot.recipe.sources import LlavaCotSource
from lora_cot.types import Exchange, Sample

PLACEHOLDERS = re.compile(r"^(\s*<image>\s*)+|(\s*<image>\s*)+$")


class Turn(BaseModel):
    """One side's words."""

    model_config = ConfigDict(strict=True)

    speaker: Literal["human", "gpt"] = Field(alias="from")
    value: str


class LlavaCotRow(StrictRow):
    """A record of the published file."""

    image: str | list[str] | None = None
    conversations: list[Turn] = Field(min_length=2)


def rows(source: LlavaCotSource, cot_format: CotFormat) -> Iterator[SampleReader]:
    """All rows. Their stages are known by name, so that any format can use those it needs.

    Raises:
        DataError: no such file. Of a row, when it is read: another form, or an image that is missing.
    """
    root = source.image_root or source.path.parent
    plain = not cot_format.is_tagged and cot_format.answer_stage.is_answer

    def make(where: str, row: Row) -> Sample:
        record = checked(LlavaCotRow, row)
        turns = record.conversations
        if [turn.speaker for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
            what = "expected pairs of a turn from 'human' and a turn from 'gpt'"
            raise DataError(Problem("conversations", what, kind="row_form"))
        names = [record.image] if isinstance(record.image, str) else record.image
        pairs = zip(turns[0::2], turns[1::2], strict=True)
        exchanges = tuple(_exchange(2 * number, *pair, plain) for number, pair in enumerate(pairs))
        name = where if record.id is None else str(record.id)
        slots = sum(len(SLOT.findall(turn.value)) for turn in turns[0::2])
        return Sample(name, exchanges, image_files(list(filter(None, names or [])), root), slots=slots)

    return sample_readers(read_json_rows(source.path), make)


def _exchange(number: int, human: Turn, gpt: Turn, plain: bool) -> Exchange:
    question = not_empty(PLACEHOLDERS.sub("", human.value).strip(), f"conversations.{number}.value")
    where = f"conversations.{number + 1}.value"
    if plain and FOUR_STAGE.parse(gpt.value).outcome == "none":
        return Exchange(question, answer=not_empty(gpt.value.strip(), where))
    try:
        stages = FOUR_STAGE.read(gpt.value)
    except DataError as error:
        raise error.at(where) from None
    return Exchange(question, stages=stages, answer=stages[FOUR_STAGE.answer_stage.name])
