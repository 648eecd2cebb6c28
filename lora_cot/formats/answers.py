"""When two short answers are the same, and which option a text names."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTER = re.compile(r"(\([A-Za-z]\)|[A-Za-z])[.:)]?")
LETTER_AND_TEXT = re.compile(r"(\([A-Za-z]\)|[A-Za-z](?=[.:)]))[.:)]{0,2}\s(.*)", re.DOTALL)
MARKED = r"(?:\([A-Za-z]\)|(?<![\w.])[A-Z](?=\s*(?:[.:,;!)\n]|$|[Bb]ecause|BECAUSE)))"
"""An option's letter where it cannot be a word: `(b)`, or `B` before a stop; not the one of `A mixture`."""
LEAD = r"(?i:the (?:(?:correct|right|best|final) )?(?:answer|option|choice) is:?)"
SAID = re.compile(
    rf"(?:{LEAD}\s*(?i:option\s+)?|\A(?i:option)\s+)({MARKED})(?!\s*(?:[,;/&]|and\b|or\b)+\s*{MARKED})",
)
"""A sentence that names an option: `The answer is (B).`, `The correct answer is B.`, `Option B`; not `… is (B) or (C)`."""
BOLD = re.compile(r"(?<![\w*])(\*{1,3})(?=\S)([^*\n]+)(?<=\S)\1(?![\w*])")
"""`**B**`; not `A*`, nor `2*3`."""


def normalise(answer: str) -> str:
    """An answer without what does not matter: case, spaces, a final stop, what follows an option's letter.

    `The answer is (B).`, `(B)`, `B.`, `b` and `B: 5 MPa` are option b; `3`, `3.0` and `1,000` are numbers; all else is
    compared as words.
    """
    text = " ".join(answer.lower().split()).rstrip(".!").rstrip().removeprefix("the answer is ")
    option = re.fullmatch(r"\(?([a-z])\)?(?:[.:)] .*)?", text)
    if option:
        return option.group(1)
    if re.fullmatch(r"-?(\d+|\d{1,3}(,\d{3})+)?(\.\d+)?", text) and text not in ("", "-"):
        return repr(float(text.replace(",", "")))
    return text


NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def ballot(answer: str | None, choices: Sequence[str] = ()) -> str | None:
    """What an answer votes for: equal texts for answers that mean the same; None, or nothing but marks, has no vote.

    Of a question with options, the letter of the one that it names. Else what `normalise` makes of it, where moreover
    `Yes, it is.` is yes, `three` is a number, and quotes and a leading article do not matter.
    """
    option = read_option(answer, choices) if choices else None
    if option is not None:
        return letter(option).lower()
    text = normalise((answer or "").replace("*", "").replace('"', "").replace("“", "").replace("”", "")).strip(" ,;:'`")
    said = re.fullmatch(r"(yes|no)(?:[,.;:!].*)?", text, re.DOTALL)
    if said:
        return said.group(1)
    text = re.sub(r"^(?:an?|the) (?=\S)", "", text)
    if text in NUMBERS:
        text = str(NUMBERS.index(text))
    return normalise(text) or None


def same(predicted: str | None, gold: str) -> bool:
    """Whether an answer is right; None, no answer, is wrong."""
    return predicted is not None and normalise(predicted) == normalise(gold)


def letter(index: int) -> str:
    """What the option of that index is called in a prompt."""
    return chr(ord("A") + index)


def read_option(text: str | None, choices: Sequence[str]) -> int | None:
    """Index of the option that a text names; None where it names none, one that is not there, or several.

    Read are `The answer is (B).`, `The correct answer is B.` and the like anywhere; `B`, `(B)`, `B.`, `Option B`, `B. text`,
    `(B) text` as the whole text, where `text` has no other option's letter or is the option's own words; and an option's own
    words as the whole text. Bold letters and words count as plain ones. Nothing is guessed: the released Multimodal-CoT draws
    one of five options at random instead (`utils_evaluate.py`).
    """
    whole = re.sub(r"^(?:answer:\s*)+", "", BOLD.sub(r"\2", text or "").strip(), flags=re.IGNORECASE)
    core = re.sub(rf"^{LEAD}\s+", "", whole)
    words = _words(core)
    if match := LETTER.fullmatch(core):
        named = {_index(match[1])}
    elif own := {index for index, choice in enumerate(choices) if words and _words(choice) == words}:
        named = own
    elif said := {_index(match[1]) for match in SAID.finditer(whole)}:
        named = said
    elif match := LETTER_AND_TEXT.fullmatch(whole):
        named = {_index(match[1])} | _others(match[2], _index(match[1]), choices)
    else:
        named = set()
    index = named.pop() if len(named) == 1 else None
    return index if index is not None and index < len(choices) else None


def _others(text: str, index: int, choices: Sequence[str]) -> set[int]:
    """The options whose letters stand in what follows an option's letter; none in the option's own words."""
    if index < len(choices) and _words(choices[index]) == _words(text):
        return set()
    return {other for other in map(_index, re.findall(MARKED, text)) if other < len(choices)}


def _index(mark: str) -> int:
    return ord(mark.strip("()").upper()) - ord("A")


def _words(text: str) -> str:
    return " ".join(BOLD.sub(r"\2", text).casefold().split()).rstrip(".").rstrip()
