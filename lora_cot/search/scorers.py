"""Choosing among candidates for a stage. A scorer takes contests of many questions at once.

LLaVA-CoT's released judge generates a verdict in one order and reads anything it cannot parse as "the second". Here
both orders are asked, the verdict is read from the logits of "1" and "2", and a pair whose verdict depends on the
order is a tie, which the likelier text wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lora_cot.engines.base import Candidate, Engine
from lora_cot.formats import Stage
from lora_cot.formats.judging import VERDICTS, judge_question
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.trace import Comparison
from lora_cot.types import Exchange, Sample


@dataclass(frozen=True)
class Contest:
    """Candidates for one stage of one question; at least one."""

    sample: Sample
    stage: Stage
    given: str
    """Text of the stages before."""
    candidates: Sequence[Candidate]
    texts: Sequence[str]
    """The candidates' text of this stage, without tags."""


@dataclass(frozen=True)
class Verdict:
    """Which candidate won, and why."""

    winner: int
    scores: Sequence[float]
    comparisons: tuple[Comparison, ...] = ()


Scorer = Callable[[Sequence[Contest]], list[Verdict]]


def logprob(contests: Sequence[Contest]) -> list[Verdict]:
    """The likeliest text for each token on average."""
    verdicts = []
    for contest in contests:
        scores = [candidate.mean_logprob for candidate in contest.candidates]
        verdicts.append(Verdict(max(range(len(scores)), key=scores.__getitem__), scores))
    return verdicts


def self_judge(engine: Engine, adapter: bool) -> Scorer:
    """A knock-out among different texts, judged by the model itself.

    Args:
        engine: runs the judge.
        adapter: False lets the base model judge, its adapter switched off.
    """

    def score(contests: Sequence[Contest]) -> list[Verdict]:
        left = [_different(contest) for contest in contests]
        wins = [[0.0] * len(contest.candidates) for contest in contests]
        comparisons: list[list[Comparison]] = [[] for _ in contests]
        while any(len(players) > 1 for players in left):
            pairs = [(c, a, b) for c, players in enumerate(left) for a, b in _pairs(players)]
            for (c, a, _), comparison in zip(pairs, _compare(engine, adapter, contests, pairs), strict=True):
                comparisons[c].append(comparison)
                wins[c][comparison.winner] += 1
                left[c].remove(comparison.second if comparison.winner == a else a)
        return [Verdict(left[c][0], wins[c], tuple(comparisons[c])) for c in range(len(contests))]

    return score


def renumber(comparison: Comparison, numbers: Sequence[int]) -> Comparison:
    """The same comparison with the candidates' numbers among all that were drawn."""
    first, second, winner = (numbers[k] for k in (comparison.first, comparison.second, comparison.winner))
    return replace(comparison, first=first, second=second, winner=winner)


def _different(contest: Contest) -> list[int]:
    """One candidate for each different text, the likeliest of its equals, best first."""
    order = sorted(range(len(contest.texts)), key=lambda i: -contest.candidates[i].mean_logprob)
    seen: dict[str, int] = {}
    for index in order:
        seen.setdefault(contest.texts[index], index)
    return list(seen.values())


def _pairs(players: list[int]) -> list[tuple[int, int]]:
    return list(zip(players[0::2], players[1::2], strict=False))


def _compare(
    engine: Engine, adapter: bool, contests: Sequence[Contest], pairs: Sequence[tuple[int, int, int]]
) -> list[Comparison]:
    prompts = []
    for c, a, b in pairs:
        contest = contests[c]
        for first, second in ((a, b), (b, a)):
            texts = (contest.texts[first], contest.texts[second])
            question = judge_question(contest.sample.last.question, contest.stage, contest.given, *texts)
            prompts.append(Sample(contest.sample.id, (Exchange(question),), contest.sample.images))
    odds = [scores[0] - scores[1] for scores in engine.choose(prompts, VERDICTS, adapter=adapter)]
    comparisons = []
    for number, (c, a, b) in enumerate(pairs):
        forward, backward = odds[2 * number], -odds[2 * number + 1]
        flipped = forward * backward <= 0
        candidates = contests[c].candidates
        likelier = a if candidates[a].mean_logprob >= candidates[b].mean_logprob else b
        winner = likelier if flipped else a if forward > 0 else b
        comparisons.append(Comparison(a, b, (forward + backward) / 2, flipped, winner))
    return comparisons


SCORERS: dict[str, Callable[[Engine, SearchSection], Scorer]] = {
    "logprob": lambda _engine, _config: logprob,
    "self_judge": lambda engine, config: self_judge(engine, config.judge_adapter),
}
"""Scorers by the name a recipe gives them."""
