"""Rationales that a model wrote, handed to the next stage by sample id.

The released Multimodal-CoT hands them on by their place in a list (`main.py`): one row lost shifts all that follow.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lora_cot.data.rows import StrictRow, checked, not_empty, read_json_rows, tolerate
from lora_cot.errors import DataError, Problem
from lora_cot.recipe.sources import SourceSection
from lora_cot.types import Sample


class RationaleRow(StrictRow):
    """A row of such a file; other keys are left alone."""

    id: str | int
    output: str


def attach(samples: list[Sample], source: SourceSection) -> list[Sample]:
    """The samples with the source's written rationales as stage RATIONALE, if it names any; without those that have none.

    Raises:
        DataError: samples without a rationale, rationales without a sample (where the source has no limit), unreadable or
            doubled rows: all of them, unless the source lets so many be left out.
    """
    if source.rationales is None:
        return samples
    written, problems = read_rationales(source.rationales)
    path, known = source.rationales, {sample.id for sample in samples}
    problems += [Problem(f"{path} · {s.id}", "no rationale for this sample") for s in samples if s.id not in written]
    if source.limit is None:
        problems += [Problem(f"{path} · {number}", "no sample of this id") for number in written if number not in known]
    tolerate(problems, len(problems), max(len(samples), len(written)), source)
    return [_with(sample, written[sample.id]) for sample in samples if sample.id in written]


def read_rationales(path: Path) -> tuple[dict[str, str], list[Problem]]:
    """Rationales by id, and the problems of rows that hold none.

    Raises:
        DataError: no such file.
    """
    written: dict[str, str] = {}
    problems: list[Problem] = []
    for where, row in read_json_rows(path):
        try:
            if isinstance(row, Problem):
                raise DataError(row)
            record = checked(RationaleRow, row)
            if str(record.id) in written:
                raise DataError(Problem("id", f"'{record.id}' occurs twice"))
            written[str(record.id)] = not_empty(record.output, "output").strip()
        except DataError as error:
            problems += error.problems if isinstance(row, Problem) else error.at(where).problems
    return written, problems


def _with(sample: Sample, rationale: str) -> Sample:
    last = replace(sample.last, stages={**(sample.last.stages or {}), "RATIONALE": rationale})
    return replace(sample, exchanges=(*sample.exchanges[:-1], last))
