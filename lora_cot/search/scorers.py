"""Choosing among candidates. A scorer takes contests of many questions at once.

`logprob` takes the likeliest text; `self_judge` has the model compare pairs (`judging.py`, `published.py`); `reward` asks
a server (`rewards.py`). A function of one's own takes contests and gives the scores of each one's candidates, the higher
the better: in code as `answer(..., scorer=function)`; in a recipe as `scorer: package.module:function`, if an installed
package declares it, so that a recipe can run no code that was not meant for this:

    [project.entry-points."lora_cot.scorers"]
    mine = "package.module:function"

A judge or server that gives no verdict leaves the choice to likelihood, and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lora_cot.engines.base import Engine
from lora_cot.errors import Problem, SearchError
from lora_cot.formats.judging import VERDICTS
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.contests import Contest, Scorer, Verdict, logprob, verdict_of
from lora_cot.search.installed import installed
from lora_cot.search.judging import self_judge
from lora_cot.search.published import published_judge
from lora_cot.search.rewards import reward

GROUP = "lora_cot.scorers"
"""Entry points of functions that a recipe may name."""
Scores = Callable[[Sequence[Contest]], Sequence[Sequence[float]]]
"""A function of one's own: for each contest the score of each of its candidates."""


def scored(function: Scores, name: str = "scorer") -> Scorer:
    """A scorer of a function of one's own.

    Args:
        function: gives the scores.
        name: what errors call it.

    Raises:
        SearchError: as it is called: it gives something else than a finite number for each candidate.
    """

    def score(contests: Sequence[Contest]) -> list[Verdict]:
        found = [[float(one) for one in scores] for scores in function(contests)]
        sizes = [len(contest.texts) for contest in contests]
        if [len(scores) for scores in found] != sizes or not all(math.isfinite(one) for scores in found for one in scores):
            remedy = "it must give a list of finite numbers for each contest, one for each candidate"
            raise SearchError(Problem(name, f"its scores do not fit contests of {sizes} candidates", remedy))
        return [verdict_of(contest, scores, "reward") for contest, scores in zip(contests, found, strict=True)]

    return score


def scorer(engine: Engine, config: SearchSection, own: Scores | None = None) -> Scorer:
    """The scorer that the settings name.

    Args:
        engine: with the prompts and the adapter of what is searched; judges, if they are asked for.
        config: names the scorer.
        own: a function to use instead.

    Raises:
        SearchError: it is not there, or cannot judge for this engine.
    """
    if own is not None:
        return scored(own, getattr(own, "__name__", "scorer"))
    if config.scorer in SCORERS:
        return SCORERS[config.scorer](engine, config)
    return scored(installed(GROUP, "search.scorer", config.scorer), config.scorer)


def _judge(engine: Engine, config: SearchSection) -> Scorer:
    judge = engine.plain(config.judge_adapter)
    if config.faithful:
        return published_judge(judge)
    judge.choose((), VERDICTS)  # an engine that tells no odds says so before anything is drawn
    return self_judge(judge)


SCORERS: dict[str, Callable[[Engine, SearchSection], Scorer]] = {
    "logprob": lambda _engine, _config: logprob,
    "self_judge": _judge,
    "reward": lambda _engine, config: reward(config.reward),
}
"""Scorers by the name a recipe gives them."""
