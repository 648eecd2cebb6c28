"""The hub's chat form: the columns `messages` and, where there are any, `images`; a local file or a hub id.

`messages` alternate user and assistant, each with a text or with a list of parts (`{"type": "text", "text": …}`,
`{"type": "image"}`). An answer is read by the recipe's format.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_cot.data.rows import Row, convert, image_files, read_json_rows
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.recipe.schema import MessagesSource
from lora_cot.types import Exchange, Image, Sample


def load(source: MessagesSource, cot_format: CotFormat) -> list[Sample]:
    """All rows.

    Raises:
        DataError: rows of another form, or whose images are missing.
    """
    root = source.image_root or Path(source.path).parent

    def make(where: str, row: Row) -> Sample:
        messages = row.get("messages")
        if not isinstance(messages, list):
            raise DataError(Problem("messages", "expected a list of messages"))
        messages = [m for m in messages if m.get("role") != "system"]
        if not messages or len(messages) % 2:
            raise DataError(Problem("messages", "expected pairs of a user and an assistant message"))
        exchanges = []
        for number in range(0, len(messages), 2):
            question, reply = (_text(messages[number + k], role) for k, role in enumerate(("user", "assistant")))
            parsed = cot_format.parse(reply)
            exchanges.append(Exchange(question, reply=reply, answer=parsed.answer))
        images = _images(row.get("images") or ([row["image"]] if row.get("image") else []), root)
        return Sample(str(row.get("id", where)), tuple(exchanges), images)

    return convert(_rows(source), make, source.limit)


def _rows(source: MessagesSource) -> Iterator[tuple[str, Row]]:
    path = Path(source.path)
    if path.suffix in (".json", ".jsonl"):
        yield from read_json_rows(path)
        return
    from datasets import Features, Sequence, load_dataset
    from datasets import Image as ImageFeature

    if path.suffix == ".parquet":
        rows = load_dataset("parquet", data_files=str(path), split="train")
    else:
        rows = load_dataset(source.path, split=source.split)
    features = Features(rows.features)
    for name, feature in features.items():  # bytes, not pixels: images are opened in the collator
        if isinstance(feature, ImageFeature):
            rows = rows.cast_column(name, ImageFeature(decode=False))
        elif isinstance(getattr(feature, "feature", None), ImageFeature):
            rows = rows.cast_column(name, Sequence(ImageFeature(decode=False)))
    yield from ((f"{source.path} row {number}", row) for number, row in enumerate(rows, 1))


def _text(message: Row, role: str) -> str:
    content = message.get("content")
    if message.get("role") != role or content is None:
        raise DataError(Problem("messages", f"expected a message of the {role}, got {message.get('role')!r}"))
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or "" for part in content if part.get("type") == "text").strip()


def _images(values: list[Any], root: Path) -> tuple[Image, ...]:
    """File names, or the {bytes, path} pairs that `datasets` stores."""
    images: list[Image] = []
    for value in values:
        if isinstance(value, dict) and value.get("bytes"):
            images.append(value["bytes"])
        else:
            images += image_files([value.get("path") if isinstance(value, dict) else value], root)
    return tuple(images)
