"""What all file sources share: rows read one by one, and their mistakes collected instead of met one at a time."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
RowReader = tuple[str, Callable[[], Row]]
"""Where a row stands, and what reads it: a row that nobody asks for is not even parsed."""
SampleReader = tuple[str, Callable[[], Sample]]
"""Where a row stands, and what makes it a sample; it raises DataError if the row cannot be used."""
SLOT = re.compile(r"<image>")
"""How data sets mark the place of an image inside a question."""
RowModel = TypeVar("RowModel", bound="StrictRow")


class StrictRow(BaseModel):
    """A row whose values have the types they should: nothing is converted."""

    model_config = ConfigDict(strict=True, frozen=True)

    id: str | int | None = None


def read_json_rows(path: Path) -> Iterator[RowReader]:
    """The rows of a JSONL file, one at a time, or of a JSON file that holds a list.

    Raises:
        DataError: no such file, or a JSON file that holds no list. Of a row, when it is read: it is no JSON object.
    """
    if not path.is_file():
        raise DataError(Problem(str(path), "no such data file", "check the path"))
    if path.suffix == ".json":
        try:
            rows = _parse(path.read_bytes())
        except DataError as error:
            raise error.at(str(path)) from None
        if not isinstance(rows, list):
            raise DataError(Problem(str(path), "the file holds no list of rows", "expected [{…}, …]; a row a line is .jsonl"))
        yield from ((f"{path.name} row {number}", partial(_object, row)) for number, row in enumerate(rows, 1))
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path.name} line {number}", partial(_parse_object, line)


def _parse_object(line: bytes) -> Row:
    return _object(_parse(line))


def _object(row: Any) -> Row:
    if not isinstance(row, dict):
        raise DataError(Problem("", "not a JSON object", kind="row_unreadable"))
    return row


def _parse(data: bytes) -> Any:
    try:
        value = json.loads(data.decode("utf-8-sig"))
        if b"\\ud" in data or b"\\uD" in data:  # half of a pair of surrogates, which no tokenizer takes
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError:
        what = "not UTF-8"
    except UnicodeEncodeError:
        what = "an escape that stands for no character"
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError):
        what = "not JSON that can be read"
    raise DataError(Problem("", what, kind="row_unreadable"))


def sample_readers(rows: Iterable[RowReader], make: Callable[[str, Row], Sample]) -> Iterator[SampleReader]:
    """What makes a sample of each row; its mistakes are placed at the row."""
    return ((where, partial(_made, where, read, make)) for where, read in rows)


def _made(where: str, read: Callable[[], Row], make: Callable[[str, Row], Sample]) -> Sample:
    name = ""
    try:
        row = read()
        name = "" if row.get("id") is None else str(row["id"])
        return make(where, row)
    except DataError as error:
        raise DataError(replace(problem, row=name) for problem in error.at(where).problems) from None


@dataclass
class Collected:
    """Rows as samples, and what is wrong with the others."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    total: int = 0
    """Rows that were read."""
    bad: int = 0
    """Rows among them that cannot be used; one row can have several problems."""


def gather(rows: Iterable[SampleReader]) -> Collected:
    """The samples of all rows, and the problems of those that are none, an id that occurs twice among them."""
    found, seen = Collected(), set[str]()
    for where, read in rows:
        found.total += 1
        try:
            sample = read()
            if sample.id in seen:
                raise DataError(twice(where, sample))
        except DataError as error:
            found.bad += 1
            found.problems += error.problems
            continue
        seen.add(sample.id)
        found.samples.append(sample)
    return found


def collect(rows: Iterable[SampleReader], source: SourceSection) -> list[Sample]:
    """The samples of all rows.

    Raises:
        DataError: the rows that cannot be used, together, unless the source lets so many be dropped; see `tolerate`.
    """
    found = gather(rows)
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
    if problem := too_many(bad, total, source):
        raise DataError([problem, *shortened(problems)])
    what = f"{len(problems)} problems in rows that are left out ({bad} of {total}):"
    print(what, *shortened(problems), sep="\n  ", file=sys.stderr)


def too_many(bad: int, total: int, source: SourceSection) -> Problem | None:
    """What is wrong where more rows would be left out than the source says."""
    if bad <= source.max_bad_share * total:
        return None
    what = f"{bad} of {total} rows cannot be used, more than max_bad_share={source.max_bad_share:g}"
    return Problem("", what, "correct them, or raise max_bad_share")


def twice(where: str, sample: Sample) -> Problem:
    """What is wrong with a row whose id an earlier row of its source has."""
    what = f"'{sample.id}' occurs twice"
    return Problem(f"{where} · id", what, "give every row an id of its own", kind="duplicate_id")


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
        raise DataError(replace(problem, kind="row_form") for problem in problems.values()) from None


def _is_type(step: str | int) -> bool:
    """Whether a step of an error's place is the name of a union's member, not a key."""
    return isinstance(step, str) and (step in ("str", "int", "StoredImage") or "[" in step)


def not_empty(value: str, key: str) -> str:
    """The text.

    Raises:
        DataError: there is none.
    """
    if not value.strip():
        raise DataError(Problem(key, "empty", "every row needs this text", kind="empty"))
    return value


def image_files(names: Sequence[str], root: Path) -> tuple[Image, ...]:
    """Paths of images that a row names.

    Raises:
        DataError: a name leads out of the root, or there is no such file.
    """
    return tuple(inside(root, name) for name in names)
