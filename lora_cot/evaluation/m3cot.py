"""M3CoT's own way to read answers (Chen et al. 2024, its released `utils/metric.py`), so that figures compare.

It guesses more than `read_option` does: where no letter stands in parentheses, any option's words anywhere in the text count.
Its own rows of predictions bring their questions along, so they are scored without the benchmark's files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from lora_cot.data.rows import Collected, Row, StrictRow, checked, read_json_rows, shortened
from lora_cot.errors import DataError, Problem
from lora_cot.formats.answers import letter
from lora_cot.types import Exchange, Sample

PARENTHESISED = re.compile(r"\(([A-Za-z])\)")
AFTER_ANSWER = re.compile(r"\[Rationale\]|\[Context\]")
BREAKS = re.compile(r"[\n.,!?]")
"""What parts words beside the space: other blanks and marks do not."""


class M3cotPrediction(StrictRow):
    """A row of its own form; its other keys are left alone."""

    id: str | int
    answer: str | int
    choices: list[str] = Field(min_length=1, max_length=26)
    domain: str = Field(min_length=1)
    topic: str = Field(min_length=1)
    messages: list[str] = Field(min_length=1)


def chosen_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter that a text chooses, which may be beyond the options and is then wrong; None where it chooses none.

    Read is what follows the last `[Answer]`, if there is one, up to `[Rationale]` or `[Context]`. In it counts the last letter
    in parentheses; else, of the options in their order, the last whose text occurs, whatever its case; else the last whose
    letter stands alone as a capital; else as a small letter.
    """
    if "[Answer]" in text:
        text = AFTER_ANSWER.split(text.rpartition("[Answer]")[2], maxsplit=1)[0]
    if named := PARENTHESISED.findall(text):
        return str(named[-1]).upper()
    letters = [letter(index) for index in range(len(choices))]
    lowered, words = text.lower(), BREAKS.sub(" ", text).split(" ")
    said = [name for name, choice in zip(letters, choices, strict=True) if choice.lower() in lowered]
    capital = [name for name in letters if name in words]
    small = [name for name in letters if name.lower() in words]
    return next((found[-1] for found in (said, capital, small) if found), None)


def carried(predictions: Path) -> Collected:
    """The questions that a file of its own form brings along; of an id that occurs again, the first row counts.

    Raises:
        DataError: rows of another form, or with an answer that is no letter and no index; all of them.
    """
    found: dict[str, Sample] = {}
    problems: list[Problem] = []
    for where, read in read_json_rows(predictions):
        try:
            sample = _question(read())
        except DataError as error:
            problems += error.at(where).problems
        else:
            found.setdefault(sample.id, sample)
    if problems:
        remedy = "give every row id, answer, choices, domain, topic and messages, or name the benchmark's files with --data"
        raise DataError([*shortened(problems), Problem(str(predictions), "questions that cannot be scored", remedy)])
    return Collected(list(found.values()), total=len(found))


def _question(row: Row) -> Sample:
    record = checked(M3cotPrediction, row)
    answer = letter(record.answer) if isinstance(record.answer, int) and 0 <= record.answer < 26 else str(record.answer)
    if not re.fullmatch("[A-Z]", answer):
        raise DataError(Problem("answer", f"{answer!r} is no option", "expected a letter, A, or an index, 0"))
    meta = {"gold": ord(answer) - ord("A"), "domain": record.domain, "topic": record.topic, "rationales": []}
    exchange = Exchange(record.messages[0], answer=answer)
    return Sample(str(record.id), (exchange,), choices=tuple(record.choices), meta=meta)
