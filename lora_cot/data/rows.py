"""What all file sources share: rows read one by one, and their mistakes collected instead of met one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_cot.data.images import inside
from lora_cot.errors import DataError, Problem
from lora_cot.types import Image, Sample

MOST_PROBLEMS = 20
"""Problems that one error lists; the rest are counted."""

Row = dict[str, Any]


def read_json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(where, row) for each object of a JSONL file, or of a JSON file that holds a list.

    Raises:
        DataError: no such file, or a line that is no JSON object.
    """
    if not path.is_file():
        raise DataError(Problem(str(path), "no such data file", "check data.train and data.eval"))
    if path.suffix == ".json":
        rows = _parse(path.read_text(encoding="utf-8"), str(path))
        if not isinstance(rows, list):
            raise DataError(Problem(str(path), "the file holds no list of rows"))
        yield from ((f"{path.name} row {number}", row) for number, row in enumerate(rows, 1))
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path.name} line {number}"
                row = _parse(line, where)
                if not isinstance(row, dict):
                    raise DataError(Problem(where, "not a JSON object"))
                yield where, row


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(Problem(where, f"not JSON: {error.msg} at column {error.colno}")) from None


def convert(rows: Iterator[tuple[str, Row]], make: Callable[[str, Row], Sample], limit: int | None) -> list[Sample]:
    """Samples of the first `limit` rows.

    Raises:
        DataError: the rows that cannot be used, together, or an id that occurs twice.
    """
    samples, problems, total = [], [], 0
    seen: set[str] = set()
    for where, row in rows:
        if limit is not None and total >= limit:
            break
        total += 1
        try:
            sample = make(where, row)
            if sample.id in seen:
                raise DataError(Problem("id", f"'{sample.id}' occurs twice", "give every row an id of its own"))
            seen.add(sample.id)
            samples.append(sample)
        except DataError as error:
            problems += [Problem(f"{where} · {p.where}".rstrip(" ·"), p.what, p.remedy) for p in error.problems]
    if problems:
        rest = len(problems) - MOST_PROBLEMS
        more = [Problem("", f"and {rest} more problems in {total} rows")] if rest > 0 else []
        raise DataError([*problems[:MOST_PROBLEMS], *more])
    return samples


def text(row: Row, key: str) -> str:
    """A text field that must not be empty.

    Raises:
        DataError: it is missing, empty or no text.
    """
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(Problem(key, "missing or empty", "every row needs this text"))
    return value


def image_files(names: Sequence[Any], root: Path) -> tuple[Image, ...]:
    """Paths of images that a row names.

    Raises:
        DataError: a name is no text, leads out of the root, or there is no such file.
    """
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise DataError(Problem("image", f"{wrong[0]!r} is not the name of a file"))
    return tuple(inside(root, name) for name in names)
