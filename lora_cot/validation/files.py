"""Checks of files before anything is trained or scored on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_cot.data.collate import Collator
from lora_cot.data.rows import read_json_rows, shortened
from lora_cot.errors import DataError, Problem, nearest
from lora_cot.formats import CotFormat
from lora_cot.types import Sample

PREFLIGHT = 200
"""Samples that are opened and tokenised before anything is trained."""


def count_outcomes(path: Path, cot_format: CotFormat, field: str) -> dict[str, Any]:
    """How many texts of a JSONL file are in a format.

    Args:
        path: JSONL, or a JSON list of objects.
        cot_format: its parser reads the texts.
        field: key of the text in each row.

    Returns:
        rows; complete, partial and none, which add up to rows; faults: each departure with its number of rows.

    Raises:
        DataError: a row is no JSON object or has no such text.
    """
    outcomes: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for where, row in read_json_rows(path):
        if isinstance(row, Problem):
            raise DataError(row)
        if not isinstance(row.get(field), str):
            raise DataError(Problem(f"{where} · {field}", "no text under this key", nearest(field, map(str, row))))
        parsed = cot_format.parse(row[field])
        outcomes[parsed.outcome] += 1
        if parsed.fault:
            faults[parsed.fault] += 1
    counts = {name: outcomes[name] for name in ("complete", "partial", "none")}
    return {"rows": sum(counts.values()), **counts, "faults": dict(faults.most_common())}


def check_gold(samples: Sequence[Sample], key: str, cot_format: CotFormat) -> None:
    """See that every exchange has gold text for every stage.

    Raises:
        DataError: all samples that lack some, under the recipe's key.
    """
    problems: list[Problem] = []
    for sample in samples:
        try:
            for exchange in sample.exchanges:
                cot_format.gold(exchange)
        except DataError as error:
            problems += error.at(f"{key} · {sample.id}").problems
    if problems:
        raise DataError(shortened(problems))


def preflight(collator: Collator, samples: Sequence[Sample]) -> None:
    """Encode samples as training will, evenly spread over the data; all of them if they are few.

    Raises:
        DataError: all that cannot be trained on among them.
    """
    problems: list[Problem] = []
    for sample in samples[:: max(1, len(samples) // PREFLIGHT)]:
        try:
            collator.encode(sample)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(shortened(problems))
