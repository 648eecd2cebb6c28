"""Whether what a teacher wrote can be trained on: its form, and whether its own answer is the gold one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lora_cot.annotation.prompts import VERDICTS
from lora_cot.engines.completions import Reply
from lora_cot.formats import CotFormat
from lora_cot.formats.answers import letter, read_option, same
from lora_cot.formats.base import TAG_STYLES

REASONS = {
    "refusal": "the teacher's server kept the answer back",
    "cut_off": "the answer reached max_tokens",
    "empty": "there is no text",
    "format": "the stages are not all there, once, in order, with text and without tags in it; refusals in words too",
    "unreadable": "the teacher's answer names no option",
    "disagrees": "the teacher's answer is not the gold one",
    "verdict": "the second question was answered with neither valid nor invalid",
    "image": "the image cannot be opened",
    "rejected": "the server takes the request for wrong",
}
"""Why a row is kept aside."""


@dataclass(frozen=True)
class Aside:
    """A row that is not used."""

    reason: str
    """A name in `REASONS`."""
    detail: str = ""
    text: str = ""
    """What the teacher wrote."""


def stages_of(reply: Reply, cot_format: CotFormat) -> dict[str, str] | Aside:
    """The text of each stage, or why there is none."""
    if reply.refusal or reply.finish_reason == "content_filter":
        return Aside("refusal", reply.refusal or reply.finish_reason, reply.text)
    if reply.finish_reason == "length":
        return Aside("cut_off", text=reply.text)
    if not reply.text.strip():
        return Aside("empty", text=reply.text)
    parsed = cot_format.parse(reply.text)
    if parsed.outcome != "complete":
        return Aside("format", parsed.fault, reply.text)
    for stage in parsed.stages:
        if fault := _fault(stage.text, cot_format):
            return Aside("format", f"{stage.name} {fault}", reply.text)
    return {stage.name: stage.text for stage in parsed.stages}


def _fault(text: str, cot_format: CotFormat) -> str:
    """What is wrong with a stage's text; tags count in every spelling that a tokenizer may make us write them in."""
    if not text:
        return "is empty"
    for style in TAG_STYLES:
        spelled = cot_format.spelled(style)
        for stage in spelled.stages:
            for tag in (spelled.opening(stage), spelled.closing(stage)):
                if tag in text:
                    return f"holds the tag {tag}"
    return ""


def disagreement(said: str, gold: str, choices: Sequence[str]) -> Aside | None:
    """Why an answer is not the gold one; None if it is. Options are compared as such, all else by `answers.same`."""
    right = read_option(gold, choices) if choices else None
    if right is None:
        return None if same(said, gold) else Aside("disagrees", f"'{_short(said)}', expected '{_short(gold)}'")
    option = read_option(said, choices)
    if option is None:
        return Aside("unreadable", f"'{_short(said)}' names no option, expected ({letter(right)})")
    return None if option == right else Aside("disagrees", f"({letter(option)}), expected ({letter(right)})")


def read_verdict(text: str) -> bool | None:
    """Whether a second question was answered with valid; None if with neither word.

    Never guessed: the released code takes all that has no 'invalid' in it for valid (`generate.py` of LLaVA-CoT).
    """
    match = re.match(r"\W*(valid|invalid)\b", text, flags=re.IGNORECASE)
    return None if match is None else match.group(1).lower() == VERDICTS[0]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:79]}…"
