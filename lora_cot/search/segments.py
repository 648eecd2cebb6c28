"""Search by segments: candidates to a boundary, the best go on to the next one.

Best-of-N, sentence-level and stage-level beam search (LLaVA-CoT, Xu et al. 2024, section 3.3) are this one algorithm
with other boundaries; greedy decoding and sampling are it with one candidate.

It always ends. Every stage has a budget of tokens, and sentences share the sum of them. Where the question's own budget
(`max_search_tokens`) cuts all candidates, the best goes on alone with what is left; when nothing is left, or the time is
over, what has been written is returned. The first reason is told in `Outcome.stopped`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lora_cot.search.boundaries import Boundary, Path, is_whole, standing
from lora_cot.search.drive import Steps
from lora_cot.search.question import Outcome, Question


def search(question: Question, boundaries: Iterable[Boundary], root: Path | None = None) -> Steps[Outcome]:
    """The best text, segment by segment.

    Args:
        question: what is searched.
        boundaries: where the segments end.
        root: what is written already; nothing if not given.
    """
    if root is None:
        root = yield from question.start()
    paths, reason, root = [root], "complete", None
    for boundary in boundaries:
        running = [path for path in paths if boundary.kind != "sentence" or _goes_on(question, boundary, path)]
        if not running:
            break
        drawn = yield from question.draw(running, boundary)
        if not drawn:
            return ended(question, paths[0], question.budget.spent)
        drawn += [question.carried(path, boundary) for path in paths if path not in running]
        paths = yield from settle(question, boundary, drawn)
        del drawn, running  # the states of those that lost are let go before the next candidates take memory
        reason = why(question, boundary, paths[0])
        if boundary.kind == "stage":
            if standing(boundary, question.cot_format, paths[0]) > 1:
                break
            paths = [replace(path, used=0) for path in paths]
    return ended(question, paths[0], reason)


def settle(question: Question, boundary: Boundary, drawn: Sequence[Path]) -> Steps[list[Path]]:
    """The best of what was drawn; where the question's budget cut all of it, the best goes on alone to the boundary."""
    paths = yield from question.select(boundary, drawn)
    while is_cut(boundary, paths[0]) and paths[0].last.tokens:
        question.alone = True
        more = yield from question.draw(paths[:1], boundary)
        if not more:
            break
        paths = yield from question.select(boundary, more)
    return paths


def ended(question: Question, path: Path, reason: str) -> Outcome:
    """The outcome with this text; one that was finished alone has ended early, even if it is whole."""
    question.log.settle(path.numbers)
    return Outcome(path, question.budget.no_tokens if reason == "complete" and question.alone else reason)


def why(question: Question, boundary: Boundary, path: Path) -> str:
    """Why nothing more is drawn after a boundary's best text."""
    last = path.last
    if last.ended == "failed":
        return f"the engine gave no text: {last.problem}"
    if last.ended == "deadline":
        return question.budget.no_time
    if is_cut(boundary, path):
        return question.budget.no_tokens
    if boundary.kind == "stage" and boundary.stop:
        return "complete" if last.ended == "stop" else f"no candidate closed {boundary.stage.name}"
    is_over = last.ended == "end" or is_whole(question.cot_format, path)
    return "complete" if is_over else f"no end after {path.tokens} tokens"


def is_cut(boundary: Boundary, path: Path) -> bool:
    """Whether a text ends where it does for want of the question's tokens, and not at its own limit."""
    return path.last.ended == "length" and path.used < boundary.limit


def _goes_on(question: Question, boundary: Boundary, path: Path) -> bool:
    """Whether there is a next sentence: one that adds nothing is the last."""
    if not path.candidates:
        return True
    last = path.last
    more = last.ended in ("sentence", "stop") and last.tokens > 0 and path.used < boundary.limit
    return more and not is_whole(question.cot_format, path)
