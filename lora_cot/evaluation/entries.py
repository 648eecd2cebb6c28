"""Evaluations as `eval --output` keeps them: read again, checked, and seen to be of the same questions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from lora_cot.data.kept import meta_of
from lora_cot.data.rows import StrictRow, checked, read_json_rows, shortened
from lora_cot.errors import DataError, Problem, RunError
from lora_cot.evaluation.benchmarks import find

AGAIN = "call eval again with this --output: it asks nothing twice, and writes what is missing"
ANEW = "evaluate again, into another file"


class ComparedRow(StrictRow):
    """What of an answer's row is compared."""

    id: str
    digest: str
    question: str
    answer: str | None
    credit: float = Field(ge=0, le=1, allow_inf_nan=False)
    graded_by: str
    graded: bool
    groups: list[str]
    sets: dict[str, str | None]
    counts: bool
    format: str
    stopped: str
    failed: bool
    totals: dict[str, float]


@dataclass(frozen=True)
class Entry:
    """One evaluation: what `eval --output` wrote."""

    name: str
    setting: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    left_out: int | None = None
    """Problems of questions that could not be asked; None of a file, which does not tell."""


def read_entry(name: str, path: Path) -> Entry:
    """What `eval` wrote.

    Raises:
        DataError: no such file, or rows of which no figures can be made; all that is wrong with them.
        RunError: of a benchmark that is none.
    """
    meta = meta_of(path)
    if not path.is_file() or not meta.is_file():
        missing = path if not path.is_file() else meta
        raise DataError(Problem(str(missing), "no such file of an evaluation", "make it with eval --output FILE.jsonl"))
    try:
        setting = dict(json.loads(meta.read_text("utf-8")))
    except (ValueError, TypeError):
        raise DataError(Problem(str(meta), "it cannot be read", ANEW)) from None
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for where, read in read_json_rows(path):
        try:
            rows.append(checked(ComparedRow, read()).model_dump())
        except DataError as error:
            problems += error.at(f"{path} · {where}").problems
    if problems or not rows:
        raise DataError([*shortened(problems), Problem(str(path), "rows that cannot be compared, or none", AGAIN)])
    if twice := {one for one, count in Counter(row["id"] for row in rows).items() if count > 1}:
        raise DataError(Problem(str(path), f"there twice: {_few(twice)}", "remove one of the two rows"))
    kinds = set(find(str(setting.get("benchmark"))).together)
    if odd := {row["id"] for row in rows if set(row["sets"]) != kinds}:
        raise DataError(Problem(str(path), f"sets that are not the benchmark's: {_few(odd)}", ANEW))
    if not any(row["counts"] for row in rows):
        raise DataError(Problem(str(path), "no row counts to the accuracy", ANEW))
    return Entry(name, setting, rows)


def asked_of(entry: Entry) -> dict[str, str]:
    """What evaluations must share to be compared: benchmark, split, and who graded."""
    graded = " and ".join(sorted({str(row["graded_by"]) for row in entry.rows}))
    return {"benchmark": str(entry.setting.get("benchmark")), "split": str(entry.setting.get("split")), "graded by": graded}


def check_same(first: Entry, others: Sequence[Entry]) -> None:
    """See that evaluations can be held against the first.

    Raises:
        RunError: they answer other questions, or were graded otherwise; all that differs.
        DataError: a question counts otherwise in one than in another.
    """
    if problems := [problem for other in others for problem in _apart(first, other)]:
        raise RunError(problems)
    keys = ("counts", "groups", "sets")
    known = {row["id"]: [row[key] for key in keys] for row in first.rows}
    for other in others:
        if uneven := {row["id"] for row in other.rows if [row[key] for key in keys] != known[row["id"]]}:
            what = f"{len(uneven)} questions count otherwise than in {first.name} ({', '.join(keys)}): {_few(uneven)}"
            raise DataError(Problem(other.name, what, f"{ANEW}, whichever of the two is older"))


def _apart(first: Entry, other: Entry) -> list[Problem]:
    """In what an evaluation is of something else than the first."""
    one, two = asked_of(first), asked_of(other)
    found = [f"{name} {two[name]}, and {one[name]} in {first.name}" for name in one if one[name] != two[name]]
    known, given = ({str(row["id"]): row for row in entry.rows} for entry in (first, other))
    sides = [(other.name, set(given) - set(known)), (first.name, set(known) - set(given))]
    found += [f"{len(ids)} questions only in {name}: {_few(ids)}" for name, ids in sides if ids]
    both = [name for name in known if name in given]
    texts = {name for name in both if known[name]["question"] != given[name]["question"]}
    rest = {name for name in both if known[name]["digest"] != given[name]["digest"]} - texts
    changed = [("another text", texts), ("other choices, images or gold answers", rest)]
    found += [f"{len(ids)} questions with {what} than in {first.name}: {_few(ids)}" for what, ids in changed if ids]
    return [Problem(other.name, what, "compare evaluations of the same questions") for what in found]


def _few(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")
