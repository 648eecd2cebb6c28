"""Ways to search one pass of one question, each a generator (`drive.py`), by the names that a recipe gives them."""

from __future__ import annotations

from collections.abc import Callable

from lora_cot.engines.base import Sampling
from lora_cot.errors import Problem, SearchError
from lora_cot.formats import CotFormat
from lora_cot.recipe.schema import SearchSection
from lora_cot.search import boundaries
from lora_cot.search import swires as retracing
from lora_cot.search.drive import Steps
from lora_cot.search.question import Outcome, Question
from lora_cot.search.segments import search
from lora_cot.search.swires import swires
from lora_cot.search.voting import adaptive, majority

Strategy = Callable[[Question], Steps[Outcome]]


def check(cot_format: CotFormat, config: SearchSection, has_own_scorer: bool = False) -> None:
    """See that the strategy is defined.

    Raises:
        SearchError: it is not, for this format or these settings.
    """
    strategy, name = config.strategy, cot_format.name
    if strategy == "swires":
        retracing.check(cot_format, config, has_own_scorer)
    if strategy == "stage_beam" and not cot_format.is_tagged:
        remedy = "use greedy or sample, or a format with stages; best_of_n, majority and adaptive search whole answers"
        raise SearchError(Problem("search.strategy", f"the format {name} has no stages to search", remedy))
    if strategy == "two_pass" and not cot_format.split:
        remedy = "use greedy, or a split format such as two_stage"
        raise SearchError(Problem("search.strategy", f"the format {name} is written in one pass", remedy))
    if config.weighted and strategy in ("majority", "adaptive") and config.scorer == "self_judge" and not has_own_scorer:
        remedy = "use logprob or reward, or leave votes unweighted"
        raise SearchError(Problem("search.weighted", "a judge of pairs gives no weight to a vote", remedy))


def _greedy(question: Question) -> Steps[Outcome]:
    return search(question, [boundaries.whole(question.cot_format, question.config, 1, Sampling())])


def _sample(question: Question) -> Steps[Outcome]:
    return search(question, [boundaries.whole(question.cot_format, question.config, 1)])


def _best_of_n(question: Question) -> Steps[Outcome]:
    return search(question, [boundaries.whole(question.cot_format, question.config, question.config.candidates)])


def _sentence_beam(question: Question) -> Steps[Outcome]:
    return search(question, boundaries.sentences(question.cot_format, question.config))


def _stage_beam(question: Question) -> Steps[Outcome]:
    return search(question, boundaries.stages(question.cot_format, question.config))


STRATEGIES: dict[str, Strategy] = {
    "greedy": _greedy,
    "sample": _sample,
    "majority": majority,
    "best_of_n": _best_of_n,
    "sentence_beam": _sentence_beam,
    "stage_beam": _stage_beam,
    "swires": swires,
    "two_pass": _greedy,
    "adaptive": adaptive,
}
"""Strategies by the name a recipe gives them; two_pass is greedy decoding of formats that are split."""
