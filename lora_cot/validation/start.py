"""What every training checks before it trains: gold text of all rows, and the checks of `validate` on a sample of them."""

from __future__ import annotations

from collections.abc import Sequence

from lora_cot.data.collate import Collator
from lora_cot.data.rows import shortened
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.types import Image, Sample, StoredImage
from lora_cot.validation.checks import CHECKS, NOTES, Checker, digest, row_keys

SAMPLED = 200
"""Rows that are opened and encoded before anything is trained."""
NAMED = 5
"""Ids that a note names."""


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


def check_start(collator: Collator, samples: Sequence[Sample], held_out: Sequence[Sample]) -> list[str]:
    """Check and encode samples as training will, evenly spread over the data; all of them if they are few.

    Returns:
        A line for each thing that is odd; training goes on all the same. Leaks and rows that occur twice are looked for
        among all rows, by the images' files.

    Raises:
        DataError: all that cannot be trained on among those that were looked at.
    """
    limit = collator.limit
    checker = Checker(limit.encoder.format, (limit,), limit.max_pixels)
    problems: list[Problem] = []
    notes: dict[str, list[str]] = {}
    for sample in (*spread(samples), *spread(held_out)):
        found = checker(sample).findings
        failing = [Problem(sample.id, finding.reason, kind=finding.check) for finding in found if finding.check not in NOTES]
        for finding in found:
            if finding.check in NOTES:
                notes.setdefault(finding.check, []).append(sample.id)
        if not failing:
            try:
                collator.encode(sample)
            except DataError as error:
                failing += error.problems
        problems += failing
    if problems:
        raise DataError(shortened(problems))
    notes |= _repeated(samples, held_out)
    return [f"{check}: {_named(notes[check])}: {meaning}" for check, meaning in CHECKS.items() if check in notes]


def _repeated(samples: Sequence[Sample], held_out: Sequence[Sample]) -> dict[str, list[str]]:
    """Ids of rows that occur twice, and of held-out rows that training sees."""
    found: dict[str, list[str]] = {}
    questions: set[int] = set()
    images: set[int] = set()
    content: set[int] = set()
    for sample in {id(sample): sample for sample in samples}.values():  # a weight above 1 repeats them
        keys = row_keys(sample, [file_key(image) for image in sample.images])
        if keys.content in content:
            found.setdefault("duplicate_row", []).append(sample.id)
        questions.add(keys.question)
        content.add(keys.content)
        images.update(keys.images)
    for sample in held_out:
        keys = row_keys(sample, [file_key(image) for image in sample.images])
        if keys.question in questions:
            found.setdefault("leak_question", []).append(sample.id)
        if images.intersection(keys.images):
            found.setdefault("leak_image", []).append(sample.id)
    return found


def file_key(image: Image) -> int:
    """Digest of where an image lies, or of its bytes: equal for the same file."""
    if isinstance(image, StoredImage):
        return digest(repr((image.rows.info.dataset_name, image.row, image.column, image.place)).encode())
    return digest(image if isinstance(image, bytes) else str(image).encode("utf-8", "surrogateescape"))


def _named(ids: Sequence[str]) -> str:
    return f"{len(ids)} rows, {', '.join(ids[:NAMED])}{' …' if len(ids) > NAMED else ''}"


def spread(samples: Sequence[Sample]) -> Sequence[Sample]:
    """About SAMPLED of them, evenly spread; all of them if they are few."""
    return samples[:: max(1, len(samples) // SAMPLED)]
