"""LLaVA-CoT's judge as it was released (`inference/demo/simple_inference.py`): for comparison, not for use.

One order, a generated verdict, and pairs at random until one candidate is left. Of two reasonings the first that the
judge calls incorrect loses at once, before they are compared. A verdict that has `I choose response 1` anywhere in it
chooses the first, and any other the second, whatever it says; those that say neither or both are counted as failures here.
There is no second order: a text that tells the judge to choose response 1 wins where it is shown first and obeyed.

Where we differ: the random numbers have a seed, texts are quoted as data, a verdict has 256 tokens instead of 2048, and
where there is none (the engine gave no text, it was cut before it chose, time or tokens were over) likelihood decides.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lora_cot.engines.base import Ask, Candidate, Engine, Sampling
from lora_cot.formats.judging import FIRST, SECOND, published_check, published_question
from lora_cot.search.contests import Contest, Scorer, Verdict
from lora_cot.search.judging import different, knockout, unheard
from lora_cot.search.trace import Comparison
from lora_cot.types import Exchange, Sample

SAMPLING = Sampling(temperature=0.6, top_p=0.9)
MAX_NEW_TOKENS = 256
"""Of a verdict: a reason and a choice."""


@dataclass
class _Bout:
    """One contest on its way to its winner."""

    contest: Contest
    draws: random.Random
    players: list[int]
    comparisons: list[Comparison] = field(default_factory=list)
    prompts: int = 0
    tokens: int = 0
    """That its judge has written."""

    @property
    def most_tokens(self) -> int:
        """That its judge may write next."""
        most = self.contest.judge_tokens
        return MAX_NEW_TOKENS if most is None else min(MAX_NEW_TOKENS, max(most - self.tokens, 0))

    @property
    def is_over(self) -> bool:
        """Whether its judge may be asked nothing more."""
        return self.contest.is_late or self.most_tokens == 0

    def pair(self) -> tuple[int, int]:
        """Two players, taken out at random."""
        first = self.players.pop(self.draws.randrange(len(self.players)))
        return first, self.players.pop(self.draws.randrange(len(self.players)))

    def seed(self) -> str:
        """Of the next thing that this bout's judge says."""
        self.prompts += 1
        return f"{self.contest.seed}/judge/{self.prompts}"


def published_judge(engine: Engine) -> Scorer:
    """The released tournament; the contests' comparisons are asked together. Of candidates that vote alike one plays.

    Args:
        engine: what judges, see `Engine.plain`.
    """

    def score(contests: Sequence[Contest]) -> list[Verdict]:
        players = [different(one) if one.votes else list(range(len(one.texts))) for one in contests]
        bouts = [_Bout(one, random.Random(one.seed), [*left]) for one, left in zip(contests, players, strict=True)]
        while asking := [bout for bout in bouts if len(bout.players) > 1]:
            pairs = [bout.pair() for bout in asking]
            for bout, comparison in zip(asking, _compare(engine, asking, pairs), strict=True):
                bout.comparisons.append(comparison)
                bout.players.append(comparison.winner)
        return [_verdict(bout, len(left)) for bout, left in zip(bouts, players, strict=True)]

    return score


def _verdict(bout: _Bout, played: int) -> Verdict:
    skipped = len(bout.contest.texts) - played
    found = knockout(bout.contest, bout.players[0], tuple(bout.comparisons), bout.prompts, skipped)
    return replace(found, judge_tokens=bout.tokens)


def _compare(engine: Engine, bouts: Sequence[_Bout], pairs: Sequence[tuple[int, int]]) -> list[Comparison]:
    found: dict[int, Comparison] = {}
    for place in (0, 1):  # the second reasoning is checked only if the first was not called incorrect
        checked = [n for n, bout in enumerate(bouts) if _is_checked(bout) and n not in found]
        asked = [(bouts[n], _check(bouts[n].contest, pairs[n][place])) for n in checked]
        for n, said in zip(checked, _said(engine, asked), strict=True):
            if "incorrect" in said.text:
                found[n] = Comparison(*pairs[n], None, False, pairs[n][1 - place], said=said.text)
    found |= {n: unheard(bout.contest, *pairs[n]) for n, bout in enumerate(bouts) if bout.is_over and n not in found}
    left = [n for n in range(len(bouts)) if n not in found]
    asked = [(bouts[n], _question(bouts[n].contest, *pairs[n])) for n in left]
    for n, said in zip(left, _said(engine, asked), strict=True):
        found[n] = _read(bouts[n].contest, pairs[n], said)
    return [found[n] for n in range(len(bouts))]


def _read(contest: Contest, pair: tuple[int, int], said: Candidate) -> Comparison:
    first, second = FIRST in said.text, SECOND in said.text
    if said.ended in ("failed", "deadline") or (said.ended == "length" and not (first or second)):
        return unheard(contest, *pair, said.problem or said.text)
    return Comparison(*pair, None, False, pair[0 if first else 1], failed=first == second, said=said.text)


def _is_checked(bout: _Bout) -> bool:
    return bout.contest.stage.name == "REASONING" and not bout.is_over


def _said(engine: Engine, asked: Sequence[tuple[_Bout, Sample]]) -> list[Candidate]:
    if not asked:
        return []
    states = engine.start([sample for _, sample in asked])
    asks = [
        Ask(
            state,
            [bout.seed()],
            bout.most_tokens,
            sampling=SAMPLING,
            deadline=bout.contest.deadline,
            keep_states=False,
        )
        for state, (bout, _) in zip(states, asked, strict=True)
    ]
    said = [candidate for (candidate,) in engine.extend(asks)]
    for (bout, _), candidate in zip(asked, said, strict=True):
        bout.tokens += candidate.tokens
    return said


def _check(contest: Contest, player: int) -> Sample:
    caption = dict(contest.given).get("CAPTION", "")
    return Sample(contest.sample.id, (Exchange(published_check(caption, contest.texts[player])),))


def _question(contest: Contest, first: int, second: int) -> Sample:
    texts = (contest.texts[first], contest.texts[second])
    question = published_question(contest.question, contest.stage.name, contest.given, *texts)
    return Sample(contest.sample.id, (Exchange(question),), contest.sample.own_images)
