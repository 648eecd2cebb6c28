"""What all file sources share: rows read one by one, and their mistakes collected instead of met one at a time."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_cot.data.images import inside
from lora_cot.errors import DataError, Problem, nearest
from lora_cot.recipe.sources import SourceSection
from lora_cot.types import Image, Sample

MOST_PROBLEMS = 20
"""Problems that one error lists; the rest are counted."""

Row = dict[str, Any]
RowModel = TypeVar("RowModel", bound="StrictRow")


class StrictRow(BaseModel):
    """A row whose values have the types they should: nothing is converted."""

    model_config = ConfigDict(strict=True, frozen=True)

    id: str | int | None = None


def read_json_rows(path: Path) -> Iterator[tuple[str, Row | Problem]]:
    """(where, row) for each object of a JSONL file, or of a JSON file that holds a list; a bad row is a Problem.

    Raises:
        DataError: no such file, or a JSON file that holds no list.
    """
    if not path.is_file():
        raise DataError(Problem(str(path), "no such data file", "check data.train and data.eval"))
    if path.suffix == ".json":
        rows = _parse(path.read_bytes(), str(path))
        if isinstance(rows, Problem):
            raise DataError(rows)
        if not isinstance(rows, list):
            raise DataError(Problem(str(path), "the file holds no list of rows"))
        named: Iterator[tuple[str, Any]] = ((f"{path.name} row {number}", row) for number, row in enumerate(rows, 1))
    else:
        named = _lines(path)
    for where, row in named:
        yield where, row if isinstance(row, dict | Problem) else Problem(where, "not a JSON object")


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path.name} line {number}"
                yield where, _parse(line, where)


def _parse(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Problem(where, "not UTF-8")
    except json.JSONDecodeError as error:
        return Problem(where, f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError):
        return Problem(where, "not JSON that can be read")


@dataclass
class Collected:
    """Rows as samples, and what is wrong with the others."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    total: int = 0
    """Rows that were read."""
    bad: int = 0
    """Rows among them that cannot be used; one row can have several problems."""


def collect(rows: Iterable[tuple[str, Row | Problem]], make: Callable[[str, Row], Sample], limit: int | None) -> Collected:
    """Samples of the first `limit` rows, and the problems of those that are none, an id that occurs twice among them."""
    found, seen = Collected(), set[str]()
    for where, row in itertools.islice(rows, limit):
        found.total += 1
        try:
            if isinstance(row, Problem):
                raise DataError(row)
            sample = make(where, row)
            if sample.id in seen:
                raise DataError(Problem("id", f"'{sample.id}' occurs twice", "give every row an id of its own"))
            seen.add(sample.id)
            found.samples.append(sample)
        except DataError as error:
            found.bad += 1
            found.problems += error.problems if isinstance(row, Problem) else error.at(where).problems
    return found


def convert(
    rows: Iterable[tuple[str, Row | Problem]], make: Callable[[str, Row], Sample], source: SourceSection
) -> list[Sample]:
    """Samples of a source's rows, of the first `limit` ones if it has one.

    Raises:
        DataError: the rows that cannot be used, together, unless the source lets them be dropped; see `tolerate`.
    """
    found = collect(rows, make, source.limit)
    tolerate(found.problems, found.bad, found.total, source)
    return found.samples


def tolerate(problems: Sequence[Problem], bad: int, total: int, source: SourceSection) -> None:
    """Say what is left out of a source, if it may be.

    Args:
        problems: of the rows that cannot be used.
        bad: number of these rows.
        total: number of all rows.
        source: says whether rows may be left out, and how many.

    Raises:
        DataError: the problems, if none may be left out, or fewer.
    """
    if not problems:
        return
    if source.bad_rows == "error":
        raise DataError(shortened(problems))
    if bad > source.max_bad_share * total:
        share = f"{bad} of {total} rows cannot be used, more than max_bad_share={source.max_bad_share:g}"
        raise DataError([Problem("", share, "correct them, or raise max_bad_share"), *shortened(problems)])
    what = f"{len(problems)} problems in rows that are left out ({bad} of {total}):"
    print(what, *shortened(problems), sep="\n  ", file=sys.stderr)


def shortened(problems: Sequence[Problem]) -> list[Problem]:
    """The first problems, and how many more there are."""
    rest = len(problems) - MOST_PROBLEMS
    return [*problems[:MOST_PROBLEMS], *([Problem("", f"and {rest} more problems")] if rest > 0 else [])]


def checked(model: type[RowModel], row: Row) -> RowModel:
    """The row with its types checked.

    Raises:
        DataError: all keys that are missing, unknown or of the wrong type.
    """
    try:
        return model.model_validate(row)
    except ValidationError as error:
        problems: dict[str, Problem] = {}
        for item in error.errors(include_url=False, include_input=False):
            where = ".".join(str(step) for step in item["loc"] if not _is_type(step))
            if item["type"] == "extra_forbidden":
                problems[where] = Problem(where, "unknown key", nearest(where, model.model_fields))
            problems.setdefault(where, Problem(where, item["msg"]))
        raise DataError(problems.values()) from None


def _is_type(step: str | int) -> bool:
    """Whether a step of an error's place is the name of a union's member, not a key."""
    return isinstance(step, str) and (step in ("str", "int", "StoredImage") or "[" in step)


def not_empty(value: str, key: str) -> str:
    """The text.

    Raises:
        DataError: there is none.
    """
    if not value.strip():
        raise DataError(Problem(key, "empty", "every row needs this text"))
    return value


def image_files(names: Sequence[str], root: Path) -> tuple[Image, ...]:
    """Paths of images that a row names.

    Raises:
        DataError: a name leads out of the root, or there is no such file.
    """
    return tuple(inside(root, name) for name in names)
