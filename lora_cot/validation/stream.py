"""All rows of a recipe's sources, checked by several processes, in the order of the files.

Every worker goes through all rows and reads only its own: a line that nobody asks for is not even parsed. No process
holds more than a few chunks.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lora_cot.data.rows import SampleReader
from lora_cot.data.sources import rows_of
from lora_cot.errors import DataError
from lora_cot.types import Sample
from lora_cot.validation.checks import Checker, RowFacts, findings

CHUNK = 32
"""Rows that travel together."""


@dataclass(frozen=True)
class RecipeSource:
    """One source of a recipe."""

    split: str
    """train or eval: the section of the recipe that names it."""
    number: int
    """Its place in that section."""
    section: Any


class CheckedRow(NamedTuple):
    """A row's place, and what was found."""

    source: int
    """Number of its source."""
    where: str
    facts: RowFacts


class _Chunks(IterableDataset):
    """Lists of checked rows; of several workers each gives every so many-th list, which a DataLoader puts in order."""

    def __init__(self, sources: Sequence[RecipeSource], checker: Checker):
        self._sources, self._checker = sources, checker

    def __iter__(self) -> Iterator[list[CheckedRow]]:
        info = get_worker_info()
        own, workers = (info.id, info.num_workers) if info else (0, 1)
        rows = all_rows(self._sources, self._checker)
        for number in itertools.count():
            chunk = list(itertools.islice(rows, CHUNK))
            if not chunk:
                return
            if number % workers == own:
                yield [CheckedRow(source, where, self._facts(source, where, read)) for source, (where, read) in chunk]

    def _facts(self, source: int, where: str, read: Any) -> RowFacts:
        split, section = self._sources[source].split, self._sources[source].section
        try:
            sample = read()
        except DataError as error:
            found = findings(error.problems, where, drop=bool(where) and section.bad_rows == "drop")
            return RowFacts(tuple(found), next((problem.row for problem in error.problems), ""))
        checker = self._checker if split == "train" else replace(self._checker, only_images_train=False)
        return checker(sample)


def all_rows(sources: Sequence[RecipeSource], checker: Checker) -> Iterator[tuple[int, SampleReader]]:
    """(number of the source, row) of all sources; one that cannot be read at all is one row without a place."""
    for number, source in enumerate(sources):
        try:
            yield from ((number, row) for row in rows_of(source.section, checker.cot_format))
        except DataError as error:
            yield number, ("", partial(_unreadable, error))


def _unreadable(error: DataError) -> Sample:
    raise DataError(replace(problem, kind="source_unreadable") for problem in error.problems)


def check_rows(sources: Sequence[RecipeSource], checker: Checker, workers: int | None = None) -> Iterator[list[CheckedRow]]:
    """Every row of the sources in order, checked, chunk by chunk, with a progress bar on standard error.

    Args:
        sources: of a recipe, or the one of a file.
        checker: looks at each sample.
        workers: processes; as many as cores, four at most, if not given; 0 does it in this one.
    """
    from tqdm import tqdm

    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(4, cores)
    total = sum(1 for _ in all_rows(sources, checker))
    loader: Any = DataLoader(_Chunks(sources, checker), batch_size=None, collate_fn=list, num_workers=workers)
    often = 0.5 if sys.stderr.isatty() else 10
    with tqdm(total=total, desc="checking", unit="row", file=sys.stderr, mininterval=often, delay=2) as bar:
        for chunk in loader:
            yield chunk
            bar.update(len(chunk))
