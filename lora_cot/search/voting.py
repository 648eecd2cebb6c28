"""Search by votes: whole answers are drawn, and the answer that most of them give wins.

`majority` is self-consistency (Wang et al. 2023, arXiv 2203.11171). `adaptive` draws on only while the lead can be lost
(Adaptive-Consistency, Aggarwal et al. 2023, arXiv 2305.11860, its Beta criterion), with the seeds of `majority`: without a
budget of tokens, which is shared out otherwise, what it draws is the beginning of what that would draw. Ours is that two
votes of two are enough, and that it counts heads even where votes are weighted.

Answers count as the same by `formats.answers.ballot`. An answer that was not finished has no vote. A tie goes to the
better-scored candidate, and the text that is returned is the best-scored one with the winning answer; where nobody has
a vote, the best of all texts. A judge decides between answers, not between wordings: of the texts that vote alike the
likeliest stands for all, and where the leading ones all do nothing is judged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lora_cot.formats.answers import ballot
from lora_cot.search.boundaries import Boundary, Path, whole
from lora_cot.search.contests import Verdict, ranking
from lora_cot.search.drive import Steps
from lora_cot.search.question import Outcome, Question
from lora_cot.search.segments import ended, settle, why

ROUND = 2
"""Answers that `adaptive` draws at once."""


def majority(question: Question) -> Steps[Outcome]:
    """The answer that most of N give."""
    boundary = whole(question.cot_format, question.config, question.config.candidates)
    root = yield from question.start()
    drawn = yield from question.draw([root], boundary)
    return (yield from _elect(question, boundary, drawn or [root]))


def adaptive(question: Question) -> Steps[Outcome]:
    """The answer that most give, of two and two until the lead is safe, or all N are drawn."""
    boundary = whole(question.cot_format, question.config, question.config.candidates)
    root = yield from question.start()
    drawn: list[Path] = []
    while len(drawn) < boundary.count:
        more = yield from question.draw([root], boundary, min(ROUND, boundary.count - len(drawn)), len(drawn))
        drawn += more
        if not more or is_safe(Counter(filter(None, _votes(question, drawn))), question.config.confidence):
            break
    found = yield from _elect(question, boundary, drawn or [root])
    return replace(found, stopped=question.budget.spent) if not more and found.stopped == "complete" else found


def is_safe(votes: Mapping[str, int], confidence: float) -> bool:
    """Whether the leading answer will stay ahead: all votes are for it, and at least two; or it is likely enough that it
    is given more often than the second one, by the Beta posterior of their counts under a uniform prior.
    """
    counts = sorted(votes.values(), reverse=True)
    if len(counts) < 2:
        return sum(counts) >= 2
    return lead(counts[0], counts[1]) >= confidence


def lead(first: int, second: int) -> float:
    """Probability that a share drawn from Beta(first + 1, second + 1) is above one half."""
    draws = first + second + 1
    return sum(math.comb(draws, count) for count in range(first + 1)) / 2**draws


def _votes(question: Question, drawn: Sequence[Path]) -> list[str | None]:
    """What each of the texts votes for; None: it has no vote."""
    votes = []
    for path in drawn:
        finished = path.parsed.get(question.cot_format.answer_stage.name)
        counts = finished is not None and (finished.closed or path.last.ended == "end")
        votes.append(ballot(path.parsed.answer, question.sample.choices) if counts else None)
    return votes


def _elect(question: Question, boundary: Boundary, drawn: Sequence[Path]) -> Steps[Outcome]:
    if not drawn[0].candidates:  # the budget was spent before anything was drawn
        return ended(question, drawn[0], question.budget.spent)
    votes = _votes(question, drawn)
    voters = [place for place, vote in enumerate(votes) if vote]
    if not voters:
        (best,) = yield from settle(question, boundary, drawn)
        return ended(question, best, why(question, boundary, best))
    leading = _leaders(dict.fromkeys(voters, 1.0), votes)
    field = voters if question.config.weighted else leading
    contest = question.contest(boundary, [drawn[place] for place in field], [votes[place] or "" for place in field])
    verdict = yield from question.judge(contest)
    if question.config.weighted:
        leading = _leaders(dict(zip(field, _weights(verdict), strict=True)), votes)
    order = [field[place] for place in ranking(contest, verdict)]
    winner = next(place for place in order if place in leading)
    question.record(boundary, drawn, [winner], field, verdict, votes)
    return ended(question, drawn[winner], why(question, boundary, drawn[winner]))


def _leaders(weights: Mapping[int, float], votes: Sequence[str | None]) -> list[int]:
    """Places of the texts that vote for an answer whose votes weigh most."""
    totals = {vote: math.fsum(weight for place, weight in weights.items() if votes[place] == vote) for vote in votes if vote}
    most = max(totals.values())
    return [place for place in weights if totals[votes[place] or ""] == most]


def _weights(verdict: Verdict) -> list[float]:
    """A vote's weight: the mean probability of a token, or the reward; one below zero counts for nothing."""
    return [math.exp(score) if verdict.scored_by == "logprob" else max(score, 0.0) for score in verdict.scores]
