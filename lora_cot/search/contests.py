"""What a scorer is given, what it gives back, and the scorer that needs nothing else: likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_cot.engines.base import Candidate
from lora_cot.formats import FORMATS, Stage
from lora_cot.search.trace import Comparison
from lora_cot.types import Sample


@dataclass(frozen=True)
class Contest:
    """Candidates for one segment of one question; at least one."""

    sample: Sample
    stage: Stage
    given: tuple[tuple[str, str], ...]
    """(stage, text) of what all of them go on from."""
    candidates: Sequence[Candidate]
    texts: Sequence[str]
    """The candidates' texts, without tags."""
    seed: str = ""
    """Of whatever a scorer draws at random."""

    @property
    def question(self) -> str:
        """What is asked, with its options."""
        return FORMATS["direct"].question(self.sample.last, self.sample.choices)


@dataclass(frozen=True)
class Verdict:
    """Which candidate won, and why."""

    winner: int
    scores: Sequence[float]
    comparisons: tuple[Comparison, ...] = ()
    scored_by: str = "logprob"
    """Unit of the scores: logprob, wins or reward."""
    prompts: int = 0
    """Judge prompts that were run."""
    skipped: int = 0
    """Judgements that were not needed."""
    failures: int = 0
    """Judgements that gave no verdict."""


Scorer = Callable[[Sequence[Contest]], list[Verdict]]


def logprob(contests: Sequence[Contest]) -> list[Verdict]:
    """The likeliest text for each token on average; a text whose likelihood is not known loses, which counts as a failure."""
    found = [[candidate.likelihood for candidate in contest.candidates] for contest in contests]
    return [
        verdict_of(contest, scores, failures=int(-math.inf in scores and len(scores) > 1))
        for contest, scores in zip(contests, found, strict=True)
    ]


def verdict_of(contest: Contest, scores: Sequence[float], scored_by: str = "logprob", failures: int = 0) -> Verdict:
    """The verdict of scores; of equal ones the likelier text wins."""
    candidates = contest.candidates
    winner = max(range(len(scores)), key=lambda k: (scores[k], candidates[k].likelihood))
    return Verdict(winner, scores, scored_by=scored_by, failures=failures)


def ranking(contest: Contest, verdict: Verdict) -> list[int]:
    """The candidates, best first: the winner, then by score and likelihood; texts that are there already come last."""
    candidates = contest.candidates
    places = range(len(candidates))
    order = sorted(places, key=lambda k: (k != verdict.winner, -verdict.scores[k], -candidates[k].likelihood))
    first: dict[str, int] = {}
    for place in order:
        first.setdefault(contest.texts[place], place)
    return sorted(order, key=lambda k: first[contest.texts[k]] != k)
