"""Tables as the hub has them: parquet in a file or a folder, or a data set of the hub itself. Images stay undecoded.

VLMEvalKit's tables are tab-separated instead, all cells texts, and an image the base64 of its file, or the `index` of the row
that has it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from lora_cot.data.rows import Row, RowReader
from lora_cot.errors import DataError, Problem
from lora_cot.types import StoredImage


def is_table(path: str) -> bool:
    """Whether a path is no local file or folder of another kind: parquet, or a hub id."""
    local = Path(path)
    return local.suffix == ".parquet" or not local.exists() or any([*local.glob("*.parquet"), *local.glob("*/*.parquet")])


def open_table(path: str, split: str, config: str | None = None) -> Any:
    """A `datasets.Dataset` whose images are bytes, or what is read like one.

    Args:
        path: a parquet or TSV file, which is the split; a folder of parquet files, named `SPLIT-….parquet`; or a hub id.
        split: its name.
        config: of a hub id that has several, the one that is meant; of a folder, the folder in it, if there is one.

    Raises:
        DataError: it cannot be read.
    """
    import pandas  # what datasets stands on
    from datasets import Image as ImageFeature
    from datasets import Sequence as SequenceFeature
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    local = Path(path)
    if local.suffix in (".parquet", ".tsv") and not local.is_file():
        raise DataError(Problem(path, "no such data file", "check the path"))
    inner = local / config if config and (local / config).is_dir() else local
    files = [path] if local.suffix == ".parquet" else parquet_files(inner, split)
    try:
        if local.suffix == ".tsv":
            return EncodedTable(pandas.read_csv(path, sep="\t", dtype=str, keep_default_na=False).to_dict("records"))
        rows = load_dataset("parquet", data_files=files, split="train") if files else load_dataset(path, config, split=split)
    except (FileNotFoundError, DatasetNotFoundError, ConnectionError, OSError, ValueError) as error:
        what = f"the data set cannot be read: {' '.join(str(error).split())}"
        raise DataError(Problem(path, what, "check the path or hub id, the split and the network")) from None
    for name, feature in rows.features.items():  # bytes, not pixels: images are opened in the collator
        if isinstance(feature, ImageFeature):
            rows = rows.cast_column(name, ImageFeature(decode=False))
        elif isinstance(getattr(feature, "feature", None), ImageFeature):
            rows = rows.cast_column(name, SequenceFeature(ImageFeature(decode=False)))
    return rows


@dataclass(frozen=True)
class EncodedTable:
    """Rows of texts whose column `image` holds base64."""

    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        row = self.rows[number]
        return {**row, "image": self._image(row.get("image") or "")}

    def _image(self, cell: str) -> dict[str, bytes] | None:
        """The bytes of a cell; None where it holds none, or names a row that has none."""
        if cell in self._places:
            cell = self.rows[self._places[cell]]["image"]
        try:
            return {"bytes": base64.b64decode(cell, validate=True)} if cell else None
        except ValueError:  # of base64, also of letters that are not ASCII
            return None

    @cached_property
    def _places(self) -> dict[str, int]:
        return {str(row.get("index", "")): number for number, row in enumerate(self.rows)}


def parquet_files(folder: Path, split: str) -> list[str]:
    """The files of a split in a folder and in the folders in it, in order."""
    names = (f"{below}{split}{rest}.parquet" for below in ("", "*/") for rest in ("", "-*"))
    return sorted(str(file) for name in names for file in folder.glob(name))


def table_rows(table: Any, where: str, columns: Sequence[str]) -> Iterator[RowReader]:
    """Each row, read when it is asked for, with references in place of the bytes of its images.

    Args:
        table: from `open_table`.
        where: its name in errors.
        columns: those that hold an image, or a list of images.
    """
    return ((f"{where} row {number + 1}", partial(_referring, table, number, columns)) for number in range(len(table)))


def _referring(table: Any, number: int, columns: Sequence[str]) -> Row:
    row = table[number]
    cells: dict[str, Any] = {}
    for column in columns:
        value = row.get(column)
        if isinstance(value, dict) and value.get("bytes"):
            cells[column] = StoredImage(table, number, column)
        elif isinstance(value, list):
            cells[column] = [
                StoredImage(table, number, column, place) if isinstance(cell, dict) and cell.get("bytes") else cell
                for place, cell in enumerate(value)
            ]
    return {**row, **cells}
