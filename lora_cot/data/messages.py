"""The hub's chat form: the columns `messages` and, where there are any, `images`; a local file or a hub id.

`messages` alternate user and assistant, each with a text or with a list of parts (`{"type": "text", "text": …}`,
`{"type": "image"}`). An answer is read by the recipe's format. A system message is refused: prompts have none here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_cot.data.rows import (
    SLOT,
    Row,
    RowReader,
    SampleReader,
    StrictRow,
    checked,
    image_files,
    not_empty,
    read_json_rows,
    sample_readers,
)
from lora_cot.data.tables import open_table, table_rows
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.recipe.sources import MessagesSource
from lora_cot.types import Exchange, Image, Sample, StoredImage


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(strict=True)

    type: str
    text: str | None = None


class Message(BaseModel):
    """What one side said."""

    model_config = ConfigDict(strict=True)

    role: Literal["user", "assistant"]
    content: str | list[Part]

    @property
    def text(self) -> str:
        """Its text parts, a line each."""
        if isinstance(self.content, str):
            return self.content.strip()
        return "\n".join(part.text or "" for part in self.content if part.type == "text").strip()

    @property
    def slots(self) -> int:
        """Places of images in it."""
        parts = 0 if isinstance(self.content, str) else sum(part.type == "image" for part in self.content)
        return parts + len(SLOT.findall(self.text))


class ImageCell(BaseModel):
    """An image as `datasets` stores it when it is not decoded and lies in a file of its own."""

    model_config = ConfigDict(strict=True)

    path: str


class MessagesRow(StrictRow):
    """A row of the hub's chat form; other columns are left alone."""

    messages: list[Message] = Field(min_length=2)
    images: list[str | ImageCell | StoredImage] | None = None
    image: str | ImageCell | StoredImage | None = None


def rows(source: MessagesSource, cot_format: CotFormat) -> Iterator[SampleReader]:
    """All rows.

    Raises:
        DataError: no such file or data set. Of a row, when it is read: another form, or an image that is missing.
    """
    root = source.image_root or Path(source.path).parent

    def make(where: str, row: Row) -> Sample:
        record = checked(MessagesRow, row)
        if [message.role for message in record.messages] != ["user", "assistant"] * (len(record.messages) // 2):
            raise DataError(Problem("messages", "expected pairs of a user and an assistant message", kind="row_form"))
        exchanges = []
        for number in range(0, len(record.messages), 2):
            question, reply = (message.text for message in record.messages[number : number + 2])
            try:
                stages = cot_format.read(reply)
            except DataError as error:
                raise error.at(f"messages.{number + 1}") from None
            answer = cot_format.short_answer(stages)
            exchanges.append(Exchange(not_empty(question, f"messages.{number}"), stages=stages, answer=answer))
        cells = record.images or ([record.image] if record.image else [])
        images = tuple(_image(cell, root) for cell in cells)
        slots = sum(message.slots for message in record.messages[0::2])
        return Sample(where if record.id is None else str(record.id), tuple(exchanges), images, slots=slots)

    return sample_readers(_rows(source), make)


def _rows(source: MessagesSource) -> Iterator[RowReader]:
    if Path(source.path).suffix in (".json", ".jsonl"):
        return read_json_rows(Path(source.path))
    return table_rows(open_table(source.path, source.split), source.path, ("image", "images"))


def _image(cell: str | ImageCell | StoredImage, root: Path) -> Image:
    if isinstance(cell, StoredImage):
        return cell
    return image_files([cell if isinstance(cell, str) else cell.path], root)[0]
