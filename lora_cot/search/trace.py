"""What a search did: every candidate, score, verdict and cost, as plain values that turn into JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lora_cot.engines.base import Ended
from lora_cot.formats import Parsed


@dataclass(frozen=True)
class TracedCandidate:
    """One text that was drawn."""

    text: str
    tokens: int
    score: float | None
    """In the unit that `TracedStage.scored_by` names. None: it was not in the contest."""
    mean_logprob: float
    """Of a token, in nats."""
    closed: bool
    """It ended where it was meant to."""
    chosen: bool
    """It is part of the text that is returned."""
    kept: bool = False
    """The search went on from it."""
    number: int = 0
    """Its place among all candidates of the trace."""
    parent: int | None = None
    """Number of the candidate that it goes on from; None: from the prompt."""
    ended: Ended = "end"
    seconds: float = 0.0
    """From the ask to its end."""
    problem: str = ""
    """Of one that failed: why."""
    answer: str | None = None
    """What it voted for."""


@dataclass(frozen=True)
class Comparison:
    """Two candidates before a judge, by their places in the step."""

    first: int
    second: int
    margin: float | None
    """Log-odds for the first, averaged over both orders. None: the verdict was not read from odds."""
    flipped: bool
    """The verdict changed with the order, or was even: neither is preferred, the likelier text wins."""
    winner: int
    failed: bool = False
    """There was no readable verdict."""
    said: str = ""
    """The verdict's own words, if it was generated."""

    def renumbered(self, places: Sequence[int]) -> Comparison:
        """The same with the candidates' places among all that were drawn."""
        first, second, winner = (places[k] for k in (self.first, self.second, self.winner))
        return replace(self, first=first, second=second, winner=winner)


@dataclass(frozen=True)
class TracedStage:
    """One step of a search; stage None is a whole text drawn at once."""

    stage: str | None
    candidates: tuple[TracedCandidate, ...]
    comparisons: tuple[Comparison, ...] = ()
    scored_by: str = "logprob"
    """logprob: mean log-probability in nats; wins: comparisons won; reward: the unit of the server or function."""
    judge_prompts: int = 0
    skipped: int = 0
    """Judgements that were not needed, since texts were equal."""
    failures: int = 0
    """Judgements that gave no verdict; likelihood decided instead."""
    seconds: float = 0.0
    """From the first ask to the decision, other questions of the batch included."""
    rounds: int = 1
    """Calls that its candidates were drawn in."""


@dataclass
class Completion:
    """One answered question."""

    sample_id: str
    text: str
    parsed: Parsed
    stopped: str = "complete"
    """complete, or why the search ended early."""
    trace: list[TracedStage] = field(default_factory=list)
    kept_tokens: int = 0
    """Tokens of the returned text."""
    generated_tokens: int = 0
    """Tokens of all candidates."""
    judge_calls: int = 0
    """Judge prompts that were run; each order is one."""
    seconds: float = 0.0
    """Share of the batch's wall time."""

    @property
    def flips(self) -> int:
        """Comparisons whose verdict changed with the order."""
        return sum(comparison.flipped for step in self.trace for comparison in step.comparisons)

    @property
    def skipped_judgements(self) -> int:
        """Judgements that were not needed, since texts were equal."""
        return sum(step.skipped for step in self.trace)

    @property
    def judge_failures(self) -> int:
        """Judgements that gave no verdict."""
        return sum(step.failures for step in self.trace)

    @property
    def totals(self) -> dict[str, float]:
        """What the answer cost, by name; `judge_prompts` and the three after it are all about judging."""
        return {
            "generated_tokens": self.generated_tokens,
            "kept_tokens": self.kept_tokens,
            "judge_prompts": self.judge_calls,
            "flips": self.flips,
            "skipped_judgements": self.skipped_judgements,
            "judge_failures": self.judge_failures,
            "seconds": self.seconds,
        }

    def to_json(self) -> dict[str, Any]:
        """One JSON object.

        `id`, `text`, `stages` (text by name), `answer`, `outcome`, `stopped`; `totals`: `generated_tokens`,
        `kept_tokens`, `judge_prompts`, `flips`, `skipped_judgements`, `judge_failures`, `seconds`; `steps`: the fields
        of `TracedStage`, its candidates and comparisons. The tree is in `number` and `parent`.
        """
        return {
            "id": self.sample_id,
            "text": self.text,
            "stages": {stage.name: stage.text for stage in self.parsed.stages},
            "answer": self.parsed.answer,
            "outcome": self.parsed.outcome,
            "stopped": self.stopped,
            "totals": self.totals,
            "steps": [_plain(step) for step in self.trace],
        }


def _plain(step: TracedStage) -> dict[str, Any]:
    candidates, comparisons = [asdict(one) for one in step.candidates], [asdict(one) for one in step.comparisons]
    return {**vars(step), "candidates": candidates, "comparisons": comparisons}


OnStage = Callable[[int, TracedStage], None]
"""Told (number of the question, a step with a chosen candidate) as soon as that choice is certain."""


class Log:
    """The steps of one search as they come, and which candidates are certain to be in the returned text."""

    def __init__(self, tell: Callable[[TracedStage], None]):
        self.steps: list[TracedStage] = []
        self._tell, self._told, self._numbers = tell, 0, 0

    def number(self) -> int:
        """The next candidate's number; candidates are numbered in the order in which they are traced."""
        self._numbers += 1
        return self._numbers - 1

    def settle(self, numbers: Sequence[int]) -> None:
        """Mark these candidates as chosen, and tell the steps that have one and were not told yet."""
        for place in range(self._told, len(self.steps)):
            step = self.steps[place]
            marked = tuple(replace(c, chosen=c.number in numbers) for c in step.candidates)
            self.steps[place] = replace(step, candidates=marked)
            if any(c.chosen for c in marked):
                self._tell(self.steps[place])
        self._told = len(self.steps)
