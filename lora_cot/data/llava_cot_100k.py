"""LLaVA-CoT-100k in its own form: one JSON object a line with `id`, `image` and `conversations`.

`{"id": …, "image": "path", "conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}`. The
image belongs to the first human turn; placeholders such as `<image>` in the text are dropped there, since the image
has its slot. The published loader skips rows without an image (arXiv 2411.10440's `cot_dataset.py`); here they are
text-only rows. Answers hold the four stages with their tags.
"""

from __future__ import annotations

from lora_cot.data.rows import Row, convert, image_files, read_json_rows
from lora_cot.errors import DataError, Problem
from lora_cot.formats import FORMATS, CotFormat
from lora_cot.recipe.schema import LlavaCotSource
from lora_cot.types import Exchange, Sample

ROLES = ("human", "gpt")


def load(source: LlavaCotSource, cot_format: CotFormat) -> list[Sample]:
    """All rows. Their stages are known by name, so that any format can use those it needs.

    Raises:
        DataError: rows of another form, or whose images are missing.
    """
    root = source.image_root or source.path.parent

    def make(where: str, row: Row) -> Sample:
        turns = row.get("conversations")
        if not isinstance(turns, list) or not turns or len(turns) % 2:
            raise DataError(Problem("conversations", "expected pairs of a human turn and a gpt turn"))
        names = row.get("image") or []
        images = image_files([names] if isinstance(names, str) else names, root)
        pairs = zip(turns[0::2], turns[1::2], strict=True)
        exchanges = tuple(_exchange(number, *pair) for number, pair in enumerate(pairs))
        return Sample(str(row.get("id", where)), exchanges, images)

    return convert(read_json_rows(source.path), make, source.limit)


def _exchange(number: int, human: Row, gpt: Row) -> Exchange:
    where = f"conversations.{2 * number}"
    for turn, role in zip((human, gpt), ROLES, strict=True):
        if not isinstance(turn, dict) or turn.get("from") != role or not isinstance(turn.get("value"), str):
            raise DataError(Problem(where, f"expected a turn from '{role}' with a text in 'value'"))
    question = human["value"].strip()
    for placeholder in ("<image>\n", "\n<image>"):
        question = question.removeprefix(placeholder).removesuffix(placeholder)
    parsed = FORMATS["four_stage"].parse(gpt["value"])
    if parsed.outcome != "complete":
        remedy = "the four stages, each between its tags, in order"
        raise DataError(Problem(f"conversations.{2 * number + 1}", f"not a four-stage answer: {parsed.fault}", remedy))
    return Exchange(question, stages={stage.name: stage.text for stage in parsed.stages}, answer=parsed.answer)
