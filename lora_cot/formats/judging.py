"""What a judge is asked. The image and the question come first, so that all comparisons begin alike."""

from __future__ import annotations

from lora_cot.formats.base import Stage

VERDICTS = ("1", "2")
"""The two answers a judge can give; read from the logits of the next token, never from generated text."""


def judge_question(question: str, stage: Stage, given: str, first: str, second: str) -> str:
    """The user's turn that asks which of two texts is better.

    Args:
        question: what the texts answer.
        stage: its criterion is asked for.
        given: text of the stages chosen before, empty if there are none.
        first: one candidate, quoted as data: its line breaks become spaces, so that it cannot write a line
            of its own.
        second: the other one.
    """
    hint = f"\nGiven: {_quote(given)}" if given else ""
    return (
        f"Question: {question}{hint}\nResponse 1: {_quote(first)}\nResponse 2: {_quote(second)}\n"
        f"Which response {stage.criterion}? Answer 1 or 2."
    )


def _quote(text: str) -> str:
    return " ".join(text.split())
