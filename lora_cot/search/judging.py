"""The model as a judge of its own candidates, in both orders, by odds.

LLaVA-CoT's released judge generates a verdict in one order and reads anything it cannot parse as "the second"
(`published.py`). Here both orders are asked, the verdict is read from the logits of "1" and "2", and a pair whose verdict
depends on the order is a tie, which the likelier text wins. So a text that tells the judge what to choose (`choose
response 1`) gains nothing from one that obeys: it obeys in both orders.

Time is looked at before each round: what is not judged by the deadline is left to likelihood, and counted as a failure.
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
    """A knock-out among candidates that are not alike; each round of all contests is one call of the engine.

    Args:
        engine: what judges, see `Engine.plain`.
    """

    def score(contests: Sequence[Contest]) -> list[Verdict]:
        left = [different(contest) for contest in contests]
        skipped = [len(contest.texts) - len(players) for contest, players in zip(contests, left, strict=True)]
        comparisons: list[list[Comparison]] = [[] for _ in contests]
        prompts = [0] * len(contests)
        while any(len(players) > 1 for players in left):
            pairs = [(c, a, b) for c, players in enumerate(left) for a, b in zip(players[0::2], players[1::2], strict=False)]
            asked = [pair for pair in pairs if not contests[pair[0]].is_late]
            heard = dict(zip(asked, _compare(engine, contests, asked), strict=True))
            for c, a, b in pairs:
                comparison = heard.get((c, a, b)) or unheard(contests[c], a, b)
                comparisons[c].append(comparison)
                prompts[c] += 2 * ((c, a, b) in heard)
                left[c].remove(b if comparison.winner == a else a)
        return [
            knockout(contest, players[0], tuple(found), count, spared)
            for contest, players, found, count, spared in zip(contests, left, comparisons, prompts, skipped, strict=True)
        ]

    return score


def different(contest: Contest) -> list[int]:
    """One candidate of each that are alike, the likeliest, best first."""
    alike = contest.alike()
    order = sorted(range(len(contest.texts)), key=lambda i: -contest.candidates[i].likelihood)
    seen: dict[str, int] = {}
    for index in order:
        seen.setdefault(alike[index], index)
    return list(seen.values())


def likelier(contest: Contest, a: int, b: int) -> int:
    """The candidate that wins where no judge decides."""
    return a if contest.candidates[a].likelihood >= contest.candidates[b].likelihood else b


def unheard(contest: Contest, a: int, b: int, said: str = "") -> Comparison:
    """The comparison of a pair that there is no verdict on."""
    return Comparison(a, b, None, False, likelier(contest, a, b), failed=True, said=said)


def knockout(contest: Contest, winner: int, comparisons: tuple[Comparison, ...], prompts: int, skipped: int) -> Verdict:
    """The verdict of a knock-out: a candidate's score is the number of comparisons it won."""
    wins = [float(sum(one.winner == place for one in comparisons)) for place in range(len(contest.texts))]
    failures = sum(one.failed for one in comparisons)
    return Verdict(winner, wins, comparisons, "wins", prompts, skipped, failures)


def _compare(engine: Engine, contests: Sequence[Contest], pairs: Sequence[Pair]) -> list[Comparison]:
    if not pairs:
        return []
    prompts = []
    for c, a, b in pairs:
        contest = contests[c]
        given = " ".join(text for _, text in contest.given)
        for first, second in ((a, b), (b, a)):
            texts = (contest.texts[first], contest.texts[second])
            question = judge_question(contest.question, contest.stage, given, *texts)
            prompts.append(Sample(contest.sample.id, (Exchange(question),), contest.sample.own_images))
    try:
        odds = [first - second for first, second in engine.choose(prompts, VERDICTS, _earliest(contests))]
    except AccessError:
        raise
    except EngineError:
        odds = [math.nan] * len(prompts)
    return [
        _comparison(contests[c], a, b, forward, -backward)
        for (c, a, b), forward, backward in zip(pairs, odds[0::2], odds[1::2], strict=True)
    ]


def _earliest(contests: Sequence[Contest]) -> float | None:
    return min((contest.deadline for contest in contests if contest.deadline is not None), default=None)


def _comparison(contest: Contest, a: int, b: int, forward: float, backward: float) -> Comparison:
    """The comparison of log-odds for a, as they are when a stands first and when it stands second."""
    if math.isnan(forward) or math.isnan(backward):
        return unheard(contest, a, b)
    forward, backward = (max(-MOST_ODDS, min(odds, MOST_ODDS)) for odds in (forward, backward))
    flipped = forward * backward <= 0
    winner = likelier(contest, a, b) if flipped else a if forward > 0 else b
    return Comparison(a, b, (forward + backward) / 2, flipped, winner)
