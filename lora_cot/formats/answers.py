"""When two short answers are the same, and which option a text names."""

from __future__ import annotations

import re
from collections.abc import Sequence

SAID = re.compile(r"[Tt]he answer is:?\s*(?:\(([A-Za-z])\)|([A-Z])(?=\s*(?:[.:,;!)\n]|$|[Bb]ecause|BECAUSE)))")
"""A sentence that names an option: `The answer is (B).`, `The answer is B.`; not `The answer is A mixture`."""
LETTER = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z]))[.:)]?")
LETTER_AND_TEXT = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])[.:)])[.:]?\s.*", re.DOTALL)


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

    Read are `The answer is (B).` and `The answer is B.` anywhere; `B`, `(B)`, `B.`, `B. text`, `(B) text` as the whole
    text; and an option's own words as the whole text. Nothing is guessed: the released Multimodal-CoT draws one of five
    options at random instead (`utils_evaluate.py`).
    """
    whole = re.sub(r"^(?:answer:\s*)+", "", (text or "").strip(), flags=re.IGNORECASE)
    core = re.sub(r"^[Tt]he answer is:?\s+", "", whole)
    words = _words(core)
    if match := LETTER.fullmatch(core):
        named = {_index(match)}
    elif own := {index for index, choice in enumerate(choices) if words and _words(choice) == words}:
        named = own
    elif said := {_index(match) for match in SAID.finditer(whole)}:
        named = said
    else:
        named = {_index(match) for match in [LETTER_AND_TEXT.fullmatch(whole)] if match}
    index = named.pop() if len(named) == 1 else None
    return index if index is not None and index < len(choices) else None


def _index(match: re.Match[str]) -> int:
    return ord((match.group(1) or match.group(2)).upper()) - ord("A")


def _words(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".").rstrip()
