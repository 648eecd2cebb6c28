"""When two short answers are the same."""

from __future__ import annotations

import re


def normalise(answer: str) -> str:
    """An answer without what does not matter: case, spaces, a final stop, what follows an option's letter.

    `(B)`, `B.`, `b` and `B: 5 MPa` are option b; `3`, `3.0` and `1,000` are numbers; all else is compared as words.
    """
    text = " ".join(answer.lower().split()).rstrip(".!").rstrip()
    option = re.fullmatch(r"\(?([a-z])\)?(?:[.:)] .*)?", text)
    if option:
        return option.group(1)
    if re.fullmatch(r"-?(\d+|\d{1,3}(,\d{3})+)?(\.\d+)?", text) and text not in ("", "-"):
        return repr(float(text.replace(",", "")))
    return text


def same(predicted: str | None, gold: str) -> bool:
    """Whether an answer is right; None, no answer, is wrong."""
    return predicted is not None and normalise(predicted) == normalise(gold)
