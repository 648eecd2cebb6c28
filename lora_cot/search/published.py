"""LLaVA-CoT's judge as it was released (`inference/demo/simple_inference.py`): for comparison, not for use.

One order, a generated verdict, and pairs at random until one candidate is left. Of two reasonings the first that the
judge calls incorrect loses at once, before they are compared. A verdict that does not choose response 1 chooses response 2,
whatever it says; those that say neither are counted as failures here. Where we differ: the random numbers have a seed,
texts are quoted as data, and a judge that the engine gives no text for leaves the choice to likelihood.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_cot.engines.base import Ask, Candidate, Engine, Sampling
from lora_cot.formats.judging import FIRST, SECOND, published_check, published_question
from lora_cot.search.contests import Contest, Scorer, Verdict
from lora_cot.search.judging import likelier, verdict_of
from lora_cot.search.trace import Comparison
from lora_cot.types import Exchange, Sample

SAMPLING = Sampling(temperature=0.6, top_p=0.9)
MAX_NEW_TOKENS = 2048


@dataclass
class _Bout:
    """One contest on its way to its winner."""

    contest: Contest
    draws: random.Random
    players: list[int]
    comparisons: list[Comparison] = field(default_factory=list)
    prompts: int = 0

    def pair(self) -> tuple[int, int]:
        """Two players, taken out at random."""
        first = self.players.pop(self.draws.randrange(len(self.players)))
        return first, self.players.pop(self.draws.randrange(len(self.players)))

    def seed(self) -> str:
        """Of the next thing that this bout's judge says."""
        self.prompts += 1
        return f"{self.contest.seed}/judge/{self.prompts}"


def published_judge(engine: Engine) -> Scorer:
    """The released tournament; the contests' comparisons are asked together.

    Args:
        engine: what judges, see `Engine.plain`.
    """

    def score(contests: Sequence[Contest]) -> list[Verdict]:
        bouts = [_Bout(one, random.Random(one.seed), list(range(len(one.texts)))) for one in contests]
        while asking := [bout for bout in bouts if len(bout.players) > 1]:
            pairs = [bout.pair() for bout in asking]
            for bout, comparison in zip(asking, _compare(engine, asking, pairs), strict=True):
                bout.comparisons.append(comparison)
                bout.players.append(comparison.winner)
        return [verdict_of(b.contest, b.players[0], tuple(b.comparisons), b.prompts, 0) for b in bouts]

    return score


def _compare(engine: Engine, bouts: Sequence[_Bout], pairs: Sequence[tuple[int, int]]) -> list[Comparison]:
    found: dict[int, Comparison] = {}
    for place in (0, 1):  # the second reasoning is checked only if the first was not called incorrect
        checked = [n for n, bout in enumerate(bouts) if bout.contest.stage.name == "REASONING" and n not in found]
        asked = [(bouts[n], _check(bouts[n].contest, pairs[n][place])) for n in checked]
        for n, said in zip(checked, _said(engine, asked), strict=True):
            if "incorrect" in said.text:
                found[n] = Comparison(*pairs[n], None, False, pairs[n][1 - place], said=said.text)
    left = [n for n in range(len(bouts)) if n not in found]
    asked = [(bouts[n], _question(bouts[n].contest, *pairs[n])) for n in left]
    for n, said in zip(left, _said(engine, asked), strict=True):
        found[n] = _read(bouts[n].contest, pairs[n], said)
    return [found[n] for n in range(len(bouts))]


def _read(contest: Contest, pair: tuple[int, int], said: Candidate) -> Comparison:
    if said.ended == "failed":
        return Comparison(*pair, None, False, likelier(contest, *pair), failed=True, said=said.problem)
    unreadable = FIRST not in said.text and SECOND not in said.text
    return Comparison(*pair, None, False, pair[0 if FIRST in said.text else 1], failed=unreadable, said=said.text)


def _said(engine: Engine, asked: Sequence[tuple[_Bout, Sample]]) -> list[Candidate]:
    if not asked:
        return []
    states = engine.start([sample for _, sample in asked])
    asks = [
        Ask(state, [bout.seed()], MAX_NEW_TOKENS, sampling=SAMPLING, keep_states=False)
        for state, (bout, _) in zip(states, asked, strict=True)
    ]
    return [candidate for (candidate,) in engine.extend(asks)]


def _check(contest: Contest, player: int) -> Sample:
    caption = dict(contest.given).get("CAPTION", "")
    return Sample(contest.sample.id, (Exchange(published_check(caption, contest.texts[player])),))


def _question(contest: Contest, first: int, second: int) -> Sample:
    texts = (contest.texts[first], contest.texts[second])
    question = published_question(contest.question, contest.stage.name, contest.given, *texts)
    return Sample(contest.sample.id, (Exchange(question),), contest.sample.images)
