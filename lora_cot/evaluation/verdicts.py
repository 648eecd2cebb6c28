"""When an answer is right: a rule for each kind of question. An answer that cannot be read is none, and never guessed."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from lora_cot.data.hallusionbench import figure_of
from lora_cot.evaluation.m3cot import chosen_letter
from lora_cot.evaluation.metrics import rouge_l
from lora_cot.evaluation.translation import sentence_chrf
from lora_cot.formats.answers import NUMBERS, letter, read_option, same
from lora_cot.types import Sample

NUMBER = re.compile(
    r"(?<![\w.,])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-−+]?\d+)?(?![.,]\d|\w*\d|(?:st|nd|rd|th)\b)"
)
"""A whole one, with its exponent; not a part of `H2O`, `1st`, `12,5` or `1.5.2`."""
REMARK = re.compile(r"\((?!or\b)[^()]*\)")
LIST = re.compile(r"\[[^\[\]]*\]")


@dataclass(frozen=True)
class Verdict:
    """What was read in an answer, and what it is worth."""

    answer: str | None
    """None: no answer; it is wrong, and never guessed."""
    credit: float
    """1 right, 0 wrong; a benchmark may give parts."""


def of_short_answer(text: str | None, sample: Sample) -> Verdict:
    """Of an answer that is compared as a whole."""
    return Verdict(text or None, float(same(text, str(sample.last.answer))))


def of_option(text: str | None, sample: Sample) -> Verdict:
    """Of the option that it names. The options are the sample's, or those that its question holds (`options`)."""
    index = read_option(text, sample.choices or sample.meta["options"])  # type: ignore[arg-type]
    return Verdict(None if index is None else letter(index), float(index == sample.meta["gold"]))


def of_aokvqa(text: str | None, sample: Sample) -> Verdict:
    """An option's, or for a direct answer min(1, matches / 3) of the ten (its `eval_predictions.py`); case is no matter."""
    if sample.choices:
        return of_option(text, sample)
    plain = _plain(text or "")
    matches = sum(_plain(answer) == plain for answer in sample.meta["direct_answers"])  # type: ignore[attr-defined]
    return Verdict(plain or None, min(1.0, matches / 3) if plain else 0.0)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removeprefix("the answer is ").rstrip(".").rstrip()


def of_m3cot(text: str | None, sample: Sample) -> Verdict:
    """By M3CoT's own scorer."""
    chosen = chosen_letter(text or "", sample.choices)
    return Verdict(chosen, float(chosen == sample.last.answer))


def of_llava_wild(text: str | None, sample: Sample) -> Verdict:
    """ROUGE-L against the reference answer (Gao et al. 2024, ICoT, table 1); there is no right and wrong."""
    said = (text or "").strip() or None
    return Verdict(said, rouge_l(str(sample.last.answer), said or ""))


def of_translation(text: str | None, sample: Sample) -> Verdict:
    """ChrF against the reference translation; there is no right and wrong."""
    said = (text or "").strip() or None
    return Verdict(said, sentence_chrf(str(sample.last.answer), said or ""))


ABSENT = re.compile(r"\bno (?:such )?(?:image|picture|photo|figure|chart|graph|diagram|table|map|video|information|way)s?\b")
"""What says that there is nothing to look at, and not no."""


def of_yes_or_no(text: str | None, sample: Sample) -> Verdict:
    """Of a text that begins with yes or no, or says one of the two words and not the other. `No image` is neither."""
    plain = ABSENT.sub("", (text or "").lower())
    said = re.findall(r"\b(yes|no)\b", plain)
    begins = re.match(r"\W*(yes|no)\b", plain)
    named = {begins.group(1)} if begins else set(said)
    answer = named.pop() if len(named) == 1 else None
    return Verdict(answer, float(answer == sample.last.answer))


def of_hallusionbench(text: str | None, sample: Sample) -> Verdict:
    """Yes or no; of a question without a figure, a text that takes neither side is right too (its `assign_correctness`)."""
    found = of_yes_or_no(text, sample)
    is_uncertain = found.answer is None and bool((text or "").strip()) and figure_of(sample) is None
    return Verdict("uncertain", 1.0) if is_uncertain else found


def of_reference(text: str | None, sample: Sample) -> Verdict:
    """Of an open answer without a judge: right if it is a reference answer, or holds all parts of one that has several.

    Args:
        text: the answer.
        sample: its reference answers are parted by `<OR>`, and what one must say by `<AND>` (MM-Vet).
    """
    said, ways = (text or "").strip() or None, [way.split("<AND>") for way in str(sample.last.answer).split("<OR>")]
    right = any(same(said, parts[0]) if len(parts) == 1 else all(_holds(said or "", part) for part in parts) for parts in ways)
    return Verdict(said, float(right))


def _holds(text: str, part: str) -> bool:
    """Whether a part stands in a text whatever its case and blanks, and not within a word or a number."""
    text, part = (" ".join(one.lower().split()) for one in (text, part))
    sign = "(?<![-−])" if part[:1].isdigit() else ""
    return re.search(rf"(?<!\w)(?<!\d[.,]){sign}{re.escape(part)}(?!\w|[.,]\d)", text) is not None


def of_mathvista(text: str | None, sample: Sample) -> Verdict:
    """An option's; a number's, equal to the gold one at the digits that count; or a list's (its `calculate_score.py`).

    Where we differ: the released code takes the option whose text is nearest to the answer, and cuts a number's digits off
    where a whole one is wanted: 3.7 is not 3 here.
    """
    if sample.meta["options"]:
        return of_option(text, sample)
    gold, digits = str(sample.last.answer), sample.meta["precision"]
    if sample.meta["type"] == "list":
        found = [numbers for one in LIST.findall(text or "") if (numbers := _listed(one)) is not None]
        return Verdict(str(found[-1]), float(found[-1] == _listed(gold))) if found else Verdict(None, 0.0)
    value = read_number(text or "")
    if value is None:
        return Verdict(None, 0.0)
    rounded = [round(one, int(digits)) if digits is not None else one for one in (value, float(gold))]  # type: ignore[call-overload]
    return Verdict(f"{value:g}", float(rounded[0] == rounded[1]))


def read_number(text: str) -> float | None:
    """The number that a text gives as its answer; None where it names none, or several.

    Of `The answer is …` what follows counts, and what stands in parentheses only if nothing else does. `1,000`, `$5`, `5 cm`,
    `14.`, `1.5e3` and `three` are numbers, `1st` is none; two figures of the same value are one.
    """
    told = re.split(r"answer is:?", text, flags=re.IGNORECASE)[-1]
    found = NUMBER.findall(REMARK.sub(" ", told)) or NUMBER.findall(told)
    values = {float(one.replace(",", "").replace("−", "-")) for one in found}
    if not values:
        words = re.findall(r"[a-z]+", told.lower())
        values = {float(NUMBERS.index(word)) for word in words if word in NUMBERS}
    return values.pop() if len(values) == 1 else None


def _listed(text: str) -> list[float] | None:
    try:
        return [float(one) for one in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError):
        return None
