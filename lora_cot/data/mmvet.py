"""MM-Vet (Yu et al. 2023, arXiv 2308.02490): 218 open questions, each with the capabilities that it takes.

The published `mm-vet.json` with its pictures in `images/`, or the hub's `lmms-lab/MMVet` and `whyu/mm-vet`. A reference answer
joins what must all be said with `<AND>`, and what will do as well with `<OR>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pydantic import AliasChoices, Field

from lora_cot.data.questions import Use, images_of, needed, read_json_object
from lora_cot.data.rows import Collected, Row, RowReader, StrictRow, checked, gather, not_empty, sample_readers
from lora_cot.data.tables import open_table, table_rows
from lora_cot.errors import DataError, Problem
from lora_cot.types import Exchange, Sample, StoredImage

SPLITS = ("test",)
CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
"""Recognition, OCR, knowledge, language generation, spatial awareness, math."""


class MmvetRow(StrictRow):
    """A question; its other keys are left alone."""

    name: str = Field(validation_alias=AliasChoices("question_id", "id"))
    question: str
    answer: str
    capability: str | list[str]
    image: str | StoredImage | None = Field(None, validation_alias=AliasChoices("image", "imagename"))


def questions(path: str, split: str, use: Use) -> Collected:
    """All questions, and what is wrong with those that cannot be asked.

    Raises:
        DataError: the file cannot be read.
    """
    file = Path(path) if path.endswith(".json") else Path(path) / "mm-vet.json"

    def make(_where: str, row: Row) -> Sample:
        record = checked(MmvetRow, row)
        listed = record.capability.split(",") if isinstance(record.capability, str) else record.capability
        capabilities = tuple(name.strip() for name in listed if name.strip())
        if not capabilities or not set(capabilities) <= set(CAPABILITIES):
            what = f"{record.capability!r} names other capabilities than {', '.join(CAPABILITIES)}"
            raise DataError(Problem("capability", what, kind="row_form"))
        answer = not_empty(record.answer, "answer").strip()
        exchange = Exchange(not_empty(record.question, "question").strip(), {"ANSWER": answer}, answer)
        images = images_of(needed(record.image), file.parent, "images/", use)
        return Sample(record.name, (exchange,), images, meta={"capabilities": capabilities})

    return gather(sample_readers(_original(file) if file.is_file() else _table(path, split), make))


def _table(path: str, split: str) -> Iterator[RowReader]:
    return table_rows(open_table(path, split), path, ("image",))


def _original(file: Path) -> Iterator[RowReader]:
    return ((f"{file.name} · {name}", partial(_record, name, row)) for name, row in read_json_object(file).items())


def _record(name: str, row: object) -> Row:
    if not isinstance(row, dict):
        raise DataError(Problem("", "not a JSON object", kind="row_unreadable"))
    return {**row, "id": name}
