"""Where the segments of a search end: at the end of the text, of a sentence, or of a stage.

This is all that tells best-of-N, sentence beam and stage beam apart. A candidate's standing says how well it reached its
boundary; only those of the best standing compete:

- 0: it reached it, with a text. Of a whole text: it has ended and has an answer.
- 1: it can be used, but has a fault. Of a stage: closed, but empty or never opened. Of a whole text: an answer, but cut.
- 2: it missed it: cut at its budget, or ended by the model, but there is a text.
- 3: the engine failed in the middle of it.
- 4: nothing was written.

The tags of other stages inside a stage are quoted text, as they are for the parser: a stage that is closed by another
one's tag, or that a later stage is opened in, is not closed, and runs to its own tag or its budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lora_cot.engines.base import Candidate, Sampling
from lora_cot.formats import CotFormat, Parsed, Stage
from lora_cot.recipe.schema import SearchSection


@dataclass(frozen=True, eq=False)  # states hold tensors, which cannot be compared
class Path:
    """A text as far as it is written: the candidates it is made of."""

    state: Any
    parsed: Parsed
    text: str = ""
    candidates: tuple[Candidate, ...] = ()
    numbers: tuple[int, ...] = ()
    """Of the candidates, in the trace."""
    pieces: tuple[tuple[str, str], ...] = ()
    """(stage, text) of each candidate, as a judge reads it."""
    used: int = 0
    """Tokens that count against the limit of the boundary it is on the way to."""

    @property
    def last(self) -> Candidate:
        """The latest candidate."""
        return self.candidates[-1]

    @property
    def tokens(self) -> int:
        """Of all of it."""
        return sum(candidate.tokens for candidate in self.candidates)


@dataclass(frozen=True)
class Boundary:
    """The end of one segment, and how the candidates for it are drawn."""

    kind: Literal["whole", "sentence", "stage"]
    stage: Stage
    """What a judge is asked for."""
    name: str | None
    """Of the step in the trace."""
    step: str
    """Of the step in the seeds."""
    stop: tuple[str, ...]
    limit: int
    """Tokens of a candidate; of sentences: of all of them together."""
    count: int
    keep: int
    sampling: Sampling
    is_last: bool = True
    """Nothing is drawn after it, unless it is cut."""


def whole(cot_format: CotFormat, config: SearchSection, count: int, sampling: Sampling | None = None) -> Boundary:
    """The end of the text. Settings of single stages do not count, but their budgets' sum does."""
    step = "all" if cot_format.given is None else cot_format.name
    limit = sum(config.budget(stage) for stage in cot_format.stages)
    sampling = sampling or Sampling(config.temperature, config.top_p)
    answer = cot_format.answer_stage
    name, is_answer = ("all", False) if cot_format.given is None else (answer.name, answer.is_answer)
    stage = Stage(name, criterion=answer.criterion, is_answer=is_answer)
    return Boundary("whole", stage, None, step, (), limit, count, 1, sampling)


def sentences(cot_format: CotFormat, config: SearchSection) -> Iterator[Boundary]:
    """The end of each sentence or stage, without end: the search ends with the text, at the sum of the stages' budgets."""
    one = whole(cot_format, config, config.candidates)
    stage = Stage("sentence", criterion="is a better next sentence of the answer to the question")
    stop = tuple(filter(None, map(cot_format.closing, cot_format.stages)))
    for number in itertools.count(1):
        yield Boundary(
            "sentence",
            stage,
            f"sentence {number}",
            f"sentence{number}" if cot_format.given is None else f"{one.step}.sentence{number}",
            stop,
            one.limit,
            one.count,
            config.keep,
            one.sampling,
            is_last=False,
        )


def stages(cot_format: CotFormat, config: SearchSection) -> Iterator[Boundary]:
    """The closing tag of each stage."""
    for one in cot_format.stages:
        yield stage(cot_format, config, one)


def stage(cot_format: CotFormat, config: SearchSection, one: Stage) -> Boundary:
    """The closing tag of a stage; of an untagged one the end of the text."""
    special = config.stages.get(one.name)
    temperature = config.temperature if special is None or special.temperature is None else special.temperature
    is_last = one == cot_format.stages[-1]
    return Boundary(
        "stage",
        one,
        one.name,
        one.name,
        tuple(filter(None, [cot_format.closing(one)])),
        config.budget(one),
        (special and special.candidates) or config.candidates,
        1 if is_last else (special and special.keep) or config.keep,
        Sampling(temperature, config.top_p),
        is_last,
    )


def piece(boundary: Boundary, parsed: Parsed, last: Candidate) -> str:
    """What the last candidate of a text adds to it, as a judge reads it: without the tags of its stage."""
    found = parsed.get(boundary.stage.name) if boundary.kind == "stage" else None
    return found.text if found else last.text.strip()


def closed(boundary: Boundary, cot_format: CotFormat, path: Path) -> bool:
    """Whether a text ends where its boundary wants it to."""
    if boundary.kind == "sentence":
        return path.last.ended in ("sentence", "stop") or is_whole(cot_format, path)
    return path.last.ended == ("stop" if boundary.stop else "end")


def is_whole(cot_format: CotFormat, path: Path) -> bool:
    """Whether nothing is left to write."""
    if not cot_format.is_tagged:
        return path.last.ended == "end"
    answer = path.parsed.get(cot_format.stages[-1].name)
    return answer is not None and answer.closed


def standing(boundary: Boundary, cot_format: CotFormat, path: Path) -> int:
    """How well a text reached its boundary, see the module's text; 0 is best."""
    reached, written = closed(boundary, cot_format, path), bool(path.last.text.strip())
    if boundary.kind == "whole" and path.parsed.answer:
        return 0 if reached else 1
    if boundary.kind == "sentence" and reached and (written or is_whole(cot_format, path)):
        return 0
    if boundary.kind == "stage" and reached:
        found = path.parsed.get(boundary.stage.name)
        if found is not None and found.text:
            return 0
        if boundary.stop:
            return 1
    if not written:
        return 4
    return 3 if path.last.ended == "failed" else 2
