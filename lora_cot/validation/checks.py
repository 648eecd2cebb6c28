"""What can be wrong with a row, and the one function that looks for it.

Rows are measured, opened and written as text by what training itself uses, so that both say the same. What a row's own
source finds while it reads comes from there: each `Problem` names its check by `kind`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from PIL import Image as PILImage

from lora_cot.data.images import MAX_PIXELS, open_image
from lora_cot.data.lengths import LengthLimit
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.types import Exchange, Sample

CHECKS = {
    "leak_question": "held out, and the same question about the same image, or about none, is trained on",
    "leak_image": "held out, and its image is trained on",
    "source_unreadable": "a file or data set that cannot be read at all",
    "row_unreadable": "a line that is no JSON object",
    "row_missing": "an id of the split that has no record",
    "row_form": "keys or values that a row of its source cannot have",
    "empty": "no text where a question or an answer should be",
    "tags": "an answer without the text of every stage, or with tags out of place",
    "duplicate_id": "the id of an earlier row of its source",
    "image_missing": "no such image file",
    "image_outside_root": "an image outside the image root, or a link that leads there",
    "image_unreadable": "a damaged image, or one in an unknown format",
    "image_size": "an image of too many pixels, too small, or too thin",
    "too_long": "more tokens than training.max_length, image slots expanded",
    "nothing_trained": "no token that would be trained",
    "no_image": "no image, where only what sees images is trained",
    "image_slots": "more or fewer places marked for images than there are images; the images are shown all the same",
    "duplicate_row": "the same text and images as an earlier row",
    "not_taken": "several exchanges or images, and this base takes one",
    "unknown_characters": "characters that the base's vocabulary lacks; it reads and writes its unknown token for them",
    "control_tokens": "text that quotes control tokens; they are trained as the plain characters they are",
}
"""Every check with what it finds."""
NOTES = frozenset({"leak_question", "leak_image", "image_slots", "duplicate_row", "control_tokens", "unknown_characters"})
"""Checks of rows that are trained on all the same."""
Severity = Literal["fails", "dropped", "note"]
"""What training does: it stops, it leaves the row out, or it takes the row all the same."""

KNOWN_CONTROL = re.compile(r"<\|\w+\|>|</?s>|<pad>|<unk>|<image>|\[/?INST\]")
"""Control tokens of known families, for files that are checked without a processor."""


class Finding(NamedTuple):
    """One thing that a check found in a row."""

    check: str
    severity: Severity
    reason: str


class Keys(NamedTuple):
    """64-bit digests that equal rows have in common."""

    images: tuple[int, ...]
    question: int
    """All its questions with their images."""
    content: int
    """Questions, answers and images."""


@dataclass(frozen=True)
class RowFacts:
    """What is known of one row once it was checked; small, and whatever the row is."""

    findings: tuple[Finding, ...]
    id: str = ""
    images: int = 0
    turns: int = 0
    keys: Keys | None = None
    """None where an image cannot be opened, or the row could not be read."""
    tokens: int | None = None
    """Of its longest pass, image slots expanded; None where it could not be measured."""
    image_tokens: int = 0
    trained: int = 0
    """Tokens that carry loss, of all passes."""
    encoded: int = 0
    """Tokens of all passes."""
    fits: int = 0
    """Bit n is set where training keeps it in pass n."""

    @property
    def readable(self) -> bool:
        """Whether the row became a sample at all."""
        return self.turns > 0


@dataclass(frozen=True)
class Checker:
    """Looks at one sample after another; travels to worker processes."""

    cot_format: CotFormat
    limits: tuple[LengthLimit, ...] = ()
    """How each pass of the format encodes and limits a sample; none where there is no processor to measure with."""
    max_pixels: int = MAX_PIXELS
    only_images_train: bool = False
    """Whether only parts that see images are trained."""

    def __call__(self, sample: Sample) -> RowFacts:
        """All that is wrong with a sample, and how long it is."""
        found = [*self._slots(sample), *self._control(sample)]
        damaged, keys = self._open(sample)
        gold = self._gold(sample)
        problems = [*gold, *damaged]
        facts = RowFacts((), sample.id, len(sample.images), len(sample.exchanges), keys)
        if not gold and self.limits:
            try:
                facts, measured = self._measure(sample, facts)
            except DataError as error:
                problems = problems or list(error.problems)
            else:
                found += measured
                if not facts.fits:  # training opens no image of a row that it leaves out
                    found += findings(damaged, sample.id, drop=self.limits[0].policy != "error")
                    problems = []
        return replace(facts, findings=(*found, *findings(problems, sample.id)))

    def _slots(self, sample: Sample) -> list[Finding]:
        if sample.slots in (0, len(sample.images)):
            return []
        reason = f"{sample.slots} places marked for images, and {len(sample.images)} images"
        return [Finding("image_slots", "note", reason)]

    def _control(self, sample: Sample) -> list[Finding]:
        text = "\n".join(text for exchange in sample.exchanges for text in texts_of(exchange)) + "\n".join(sample.choices)
        tokens = self.limits[0].encoder.control_tokens(text) if self.limits else KNOWN_CONTROL.findall(text)
        found = [Finding("control_tokens", "note", f"quotes {', '.join(dict.fromkeys(tokens))}")] if tokens else []
        unknown = self.limits[0].encoder.unknown_characters(text) if self.limits else []
        return found + ([Finding("unknown_characters", "note", f"has {' '.join(unknown)}")] if unknown else [])

    def _gold(self, sample: Sample) -> list[Problem]:
        problems: list[Problem] = []
        for exchange in sample.exchanges:
            try:
                self.cot_format.gold(exchange)
            except DataError as error:
                problems += error.problems
        return problems

    def _open(self, sample: Sample) -> tuple[list[Problem], Keys | None]:
        """Every image decoded; what is wrong with them, and the keys of the row if nothing is."""
        problems: list[Problem] = []
        digests = []
        for image in sample.images:
            try:
                digests.append(pixel_key(open_image(image, self.max_pixels)))
            except DataError as error:
                problems += error.problems
        return problems, None if problems else row_keys(sample, digests)

    def _measure(self, sample: Sample, facts: RowFacts) -> tuple[RowFacts, list[Finding]]:
        """The facts with lengths, and what they mean for training.

        Raises:
            DataError: an image is refused by its header.
        """
        found: dict[str, Finding] = {}
        tokens = image_tokens = trained = encoded = fits = 0
        for number, limit in enumerate(self.limits):
            measured = limit.measure(sample)
            if problem := limit.too_long(sample, measured):
                severity: Severity = "fails" if limit.policy == "error" else "dropped"
                found.setdefault("too_long", Finding("too_long", severity, told(problem, sample.id)))
            else:
                fits |= 1 << number
                if not measured.trained:
                    found.setdefault("nothing_trained", Finding("nothing_trained", "fails", "no token of it is trained"))
            if measured.length > tokens:
                tokens, image_tokens = measured.length, measured.images
            encoded, trained = encoded + measured.length, trained + measured.trained
        if fits and self.only_images_train and not sample.images:
            found["no_image"] = Finding("no_image", "fails", "no image: adapt language_model too, or take the row out")
        facts = replace(facts, tokens=tokens, image_tokens=image_tokens, trained=trained, encoded=encoded, fits=fits)
        return facts, list(found.values())


def findings(problems: Iterable[Problem], place: str, drop: bool = False) -> list[Finding]:
    """Problems as findings.

    Args:
        problems: of one row.
        place: the row's, which their texts begin with and which is left out.
        drop: training leaves such rows out instead of stopping.
    """
    return [Finding(p.kind or "row_form", "dropped" if drop else "fails", told(p, place)) for p in problems]


def told(problem: Problem, place: str) -> str:
    """A problem's text without the row's place, which stands beside it."""
    return str(replace(problem, where=problem.where.removeprefix(place).removeprefix(" · ")))


def texts_of(exchange: Exchange) -> list[str]:
    """All that people or models wrote in an exchange."""
    return [exchange.question, *(exchange.stages or {}).values(), exchange.answer or ""]


def row_keys(sample: Sample, images: Sequence[int]) -> Keys:
    """What a row has in common with its equals; case and spaces of questions do not count.

    Args:
        sample: the row.
        images: digests of its images.
    """
    questions = [" ".join(exchange.question.lower().split()) for exchange in sample.exchanges]
    asked = repr((questions, sample.choices, tuple(images)))
    answers = [(sorted((exchange.stages or {}).items()), exchange.answer) for exchange in sample.exchanges]
    return Keys(tuple(images), digest(asked.encode()), digest(f"{asked}{answers}".encode()))


def pixel_key(image: PILImage.Image) -> int:
    """Digest of an image's pixels: the same picture in another file, or with other metadata, has the same."""
    return digest(repr(image.size).encode() + image.tobytes())


def digest(data: bytes) -> int:
    """64 bits, signed as SQLite keeps them."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)
