"""The model as a judge of its own candidates, in both orders, by odds.

LLaVA-CoT's released judge generates a verdict in one order and reads anything it cannot parse as "the second"
(`published.py`). Here both orders are asked, the verdict is read from the logits of "1" and "2", and a pair whose verdict
depends on the order is a tie, which the likelier text wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lora_cot.engines.base import Engine
from lora_cot.errors import AccessError, EngineError
from lora_cot.formats.judging import VERDICTS, judge_question
from lora_cot.search.contests import Contest, Scorer, Verdict
from lora_cot.search.trace import Comparison
from lora_cot.types import Exchange, Sample

MOST_ODDS = 50.0
"""Log-odds are told up to here: an option that a server does not list has none."""
Pair = tuple[int, int, int]
"""Number of a contest, and two of its candidates."""


def self_judge(engine: Engine) -> Scorer:
    """A knock-out among different texts; each round of all contests is one call of the engine.

    Args:
        engine: what judges, see `Engine.plain`.
    """

    def score(contests: Sequence[Contest]) -> list[Verdict]:
        left = [different(contest) for contest in contests]
        skipped = [len(contest.texts) - len(players) for contest, players in zip(contests, left, strict=True)]
        comparisons: list[list[Comparison]] = [[] for _ in contests]
        while any(len(players) > 1 for players in left):
            pairs = [(c, a, b) for c, players in enumerate(left) for a, b in zip(players[0::2], players[1::2], strict=False)]
            for (c, a, b), comparison in zip(pairs, _compare(engine, contests, pairs), strict=True):
                comparisons[c].append(comparison)
                left[c].remove(b if comparison.winner == a else a)
        return [
            verdict_of(contest, players[0], tuple(found), 2 * len(found), spared)
            for contest, players, found, spared in zip(contests, left, comparisons, skipped, strict=True)
        ]

    return score


def different(contest: Contest) -> list[int]:
    """One candidate for each different text, the likeliest of its equals, best first."""
    order = sorted(range(len(contest.texts)), key=lambda i: -contest.candidates[i].likelihood)
    seen: dict[str, int] = {}
    for index in order:
        seen.setdefault(contest.texts[index], index)
    return list(seen.values())


def likelier(contest: Contest, a: int, b: int) -> int:
    """The candidate that wins where no judge decides."""
    return a if contest.candidates[a].likelihood >= contest.candidates[b].likelihood else b


def verdict_of(contest: Contest, winner: int, comparisons: tuple[Comparison, ...], prompts: int, skipped: int) -> Verdict:
    """The verdict of a knock-out: a candidate's score is the number of comparisons it won."""
    wins = [float(sum(one.winner == place for one in comparisons)) for place in range(len(contest.texts))]
    failures = sum(one.failed for one in comparisons)
    return Verdict(winner, wins, comparisons, "wins", prompts, skipped, failures)


def _compare(engine: Engine, contests: Sequence[Contest], pairs: Sequence[Pair]) -> list[Comparison]:
    prompts = []
    for c, a, b in pairs:
        contest = contests[c]
        given = " ".join(text for _, text in contest.given)
        for first, second in ((a, b), (b, a)):
            texts = (contest.texts[first], contest.texts[second])
            question = judge_question(contest.question, contest.stage, given, *texts)
            prompts.append(Sample(contest.sample.id, (Exchange(question),), contest.sample.images))
    try:
        odds = [first - second for first, second in engine.choose(prompts, VERDICTS)]
    except AccessError:
        raise
    except EngineError:
        odds = [math.nan] * len(prompts)
    return [
        _comparison(contests[c], a, b, forward, -backward)
        for (c, a, b), forward, backward in zip(pairs, odds[0::2], odds[1::2], strict=True)
    ]


def _comparison(contest: Contest, a: int, b: int, forward: float, backward: float) -> Comparison:
    """The comparison of log-odds for a, as they are when a stands first and when it stands second."""
    if math.isnan(forward) or math.isnan(backward):
        return Comparison(a, b, None, False, likelier(contest, a, b), failed=True)
    forward, backward = (max(-MOST_ODDS, min(odds, MOST_ODDS)) for odds in (forward, backward))
    flipped = forward * backward <= 0
    winner = likelier(contest, a, b) if flipped else a if forward > 0 else b
    return Comparison(a, b, (forward + backward) / 2, flipped, winner)
