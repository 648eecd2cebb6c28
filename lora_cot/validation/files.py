"""Files without a recipe: what kind of rows one holds, and how many texts of predictions are in a format."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

from lora_cot.data.rows import read_json_rows
from lora_cot.errors import DataError, Problem, nearest
from lora_cot.formats import CotFormat

PREDICTION = "prediction"
"""Key of the text in files of predictions, if no other is named."""
LOOKED_AT = 20
"""Rows that are looked at for one that tells what kind of file it is."""


def source_of(path: Path) -> str | None:
    """Which source reads a file of data, by the keys of its first row; None if it holds predictions or anything else.

    Raises:
        DataError: no such file, or a JSON file that holds no list.
    """
    if path.suffix == ".parquet":
        return "messages"
    for _, read in itertools.islice(read_json_rows(path), LOOKED_AT):
        try:
            keys = read().keys()
        except DataError:
            continue
        if PREDICTION in keys:
            return None
        for key, source in (("conversations", "llava_cot_100k"), ("messages", "messages")):
            if key in keys:
                return source
        return "jsonl" if "question" in keys and keys & {"stages", "answer"} else None
    return None


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
    for where, read in read_json_rows(path):
        try:
            row = read()
        except DataError as error:
            raise error.at(where) from None
        if not isinstance(row.get(field), str):
            raise DataError(Problem(f"{where} · {field}", "no text under this key", nearest(field, map(str, row))))
        parsed = cot_format.parse(row[field])
        outcomes[parsed.outcome] += 1
        if parsed.fault:
            faults[parsed.fault] += 1
    counts = {name: outcomes[name] for name in ("complete", "partial", "none")}
    return {"rows": sum(counts.values()), **counts, "faults": dict(faults.most_common())}
