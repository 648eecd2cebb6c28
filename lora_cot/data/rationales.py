"""Rationales that a model wrote, handed to the next stage by sample id.

The released Multimodal-CoT hands them on by their place in a list (`main.py`): one row lost shifts all that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from lora_cot.data.rows import SampleReader, StrictRow, checked, not_empty, read_json_rows, tolerate
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.recipe.sources import SourceSection
from lora_cot.types import Sample


class RationaleRow(StrictRow):
    """A row of such a file; other keys are left alone."""

    id: str | int
    output: str


def with_rationales(rows: Iterable[SampleReader], path: Path, keep_gold: CotFormat | None = None) -> Iterator[SampleReader]:
    """The rows with the rationales of a file as their stage RATIONALE.

    Args:
        rows: of a source.
        path: the file.
        keep_gold: a row that has gold text for all stages of this format is left as it is.

    Raises:
        DataError: no such file. Of a row, when it is read: the file has no rationale for it.
    """
    written, _ = read_rationales(path)
    return ((where, partial(_given, where, read, written, path, keep_gold)) for where, read in rows)


def check_foreign(samples: Sequence[Sample], source: SourceSection) -> None:
    """See that a source's rationales are for its samples.

    Raises:
        DataError: rationales without a sample (where the source has no limit), unreadable or doubled rows: all of them,
            unless the source lets so many be left out.
    """
    if source.rationales is None:
        return
    written, problems = read_rationales(source.rationales)
    if source.limit is None:
        known = {sample.id for sample in samples}
        foreign = [number for number in written if number not in known]
        problems += [
            Problem(f"{source.rationales} · {number}", "no sample of this id", "check the split") for number in foreign
        ]
    tolerate(problems, len(problems), max(len(samples), len(written)), source)


def read_rationales(path: Path) -> tuple[dict[str, str], list[Problem]]:
    """Rationales by id, and the problems of rows that hold none.

    Raises:
        DataError: no such file.
    """
    written: dict[str, str] = {}
    problems: list[Problem] = []
    for where, read in read_json_rows(path):
        try:
            record = checked(RationaleRow, read())
            if str(record.id) in written:
                raise DataError(Problem("id", f"'{record.id}' occurs twice", "keep one row of each id"))
            written[str(record.id)] = not_empty(record.output, "output").strip()
        except DataError as error:
            problems += error.at(where).problems
    return written, problems


def has_gold(sample: Sample, cot_format: CotFormat) -> bool:
    """Whether every exchange has gold text for every stage."""
    try:
        for exchange in sample.exchanges:
            cot_format.gold(exchange)
    except DataError:
        return False
    return True


def _given(
    where: str, read: Callable[[], Sample], written: Mapping[str, str], path: Path, keep_gold: CotFormat | None
) -> Sample:
    sample = read()
    if keep_gold is not None and has_gold(sample, keep_gold):
        return sample
    if sample.id not in written:
        raise DataError(Problem(where, f"{path.name} has no rationale for this sample", kind="empty", row=sample.id))
    return sample.with_stages({"RATIONALE": written[sample.id]})
