"""What a judge is asked. The image comes first and the question next, so that comparisons begin alike.

Whatever a model wrote is quoted as data: its line breaks become spaces, so that it cannot write a line of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_cot.formats.base import Stage

VERDICTS = ("1", "2")
"""The two answers a judge can give; read from the logits of the next token, never from generated text."""


def judge_question(question: str, stage: Stage, given: str, first: str, second: str) -> str:
    """The user's turn that asks which of two texts is better.

    Args:
        question: what the texts answer, its options included.
        stage: its criterion is asked for.
        given: text of the stages chosen before, empty if there are none.
        first: one candidate.
        second: the other one.
    """
    hint = f"\nGiven: {quote(given)}" if given else ""
    return (
        f"Question: {question}{hint}\nResponse 1: {quote(first)}\nResponse 2: {quote(second)}\n"
        f"Which response {stage.criterion}? Answer 1 or 2."
    )


def quote(text: str) -> str:
    """The text in one line."""
    return " ".join(text.split())


PUBLISHED = {
    "SUMMARY": (
        "better provides a summary of what it should do to solve the question. The summary should focus on outlining the "
        "main approach instead of stating specific analytical reasoning or math formula.",
        "Please note that a better summary should focus on outlining the main approach instead of stating specific "
        "analytical reasoning or math formula.",
    ),
    "CAPTION": (
        "better summarizes the information in the image related to the question, and has fewer errors. It is essential that "
        "the captions are as thorough as possible while remaining accurate, capturing as many details as possible rather "
        "than providing only general commentary.",
        "Please note that a better caption should be as thorough as possible while remaining accurate, capturing as many "
        "details as possible rather than providing only general commentary.",
    ),
    "REASONING": (
        "better explains the reasoning process to solve the question, and has fewer errors. Begin by thoroughly reviewing "
        "the question, then examine each answer individually, note their differences, and decide which shows the stronger "
        "reasoning, with a clear conclusion.",
        "Please note that a better reasoning should explain the reasoning process to solve the question, and have fewer "
        "errors.",
    ),
    "CONCLUSION": (
        "offers a more effective conclusion to the question. The conclusion should align with the reasoning presented in "
        "the hint. The conclusion should never refuse to answer the question.",
        "Please note that a better conclusion should align with the reasoning presented in the hint, and never refuse to "
        "answer the question.",
    ),
    "sentence": ("is a better next sentence for the answer to the question.", ""),
}
"""Of LLaVA-CoT's released judge, by stage: what a better text does, and the reminder after the responses."""
HINTS = {"REASONING": ("CAPTION",), "CONCLUSION": ("CAPTION", "REASONING")}
"""Stages that its judge is given as a hint."""
FIRST, SECOND = "I choose response 1", "I choose response 2"


def published_question(question: str, stage: str, given: Sequence[tuple[str, str]], first: str, second: str) -> str:
    """The prompt of LLaVA-CoT's released judge (`inference/demo/simple_inference.py`), in its order and spelling.

    Where we know its longer sentences by their sense only they are ours, and texts are quoted as data, which it does not.

    Args:
        question: what the texts answer, its options included.
        stage: name of the stage, `sentence`, or anything else for a whole answer.
        given: (stage, text) of what the texts go on from.
        first: one candidate.
        second: the other one.
    """
    better, reminder = PUBLISHED.get(stage, ("better answers the question.", ""))
    wanted = HINTS.get(stage, ())
    hint = "".join(quote(text) for name, text in given if name in wanted)
    if stage == "sentence":
        hint = " ".join(quote(text) for _, text in given)
    return (
        "Now you act as a judge, helping me determine which of the two texts I provide "
        f"{better}\n\nQuestion: {question}"
        + (f"\n\nHint about the Question: {hint}" if hint else "")
        + f"\nRepsonse 1: {quote(first)}\nRepsonse 2: {quote(second)}\n\n{reminder}"
        + " Please strictly follow the following format requirements when outputting, "
        + "and don’t have any other unnecessary words."
        + '\n\nOutput format: "Since [reason], I choose response [1/2]."'
    )


def published_check(caption: str, reasoning: str) -> str:
    """The released judge's question, without an image, whether one reasoning is right."""
    return (
        "Now you act as a judge, helping me determine whether the reasoning process I provide is correct and accurate based "
        "on the given information. Assume that the information about the image is correct, verify the calculations, and "
        "output 'correct' or 'incorrect'."
        f"\n\nGiven Information: {quote(caption)}\n\nReasoning Process: {quote(reasoning)}"
    )
