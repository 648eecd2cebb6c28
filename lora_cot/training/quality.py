"""How good the model is while it trains: held-out questions, answered freely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_cot.backbones import Backbone
from lora_cot.backbones.zero import whole
from lora_cot.engines.local import LocalEngine
from lora_cot.formats import CotFormat
from lora_cot.formats.answers import same
from lora_cot.recipe import Recipe
from lora_cot.recipe.search import UNBOUNDED
from lora_cot.search.run import answer
from lora_cot.search.trace import Completion
from lora_cot.types import Sample


@dataclass(frozen=True)
class Quality:
    """What free generation on held-out samples gave."""

    format_validity: float
    """Share of texts whose stages are all there, in order."""
    accuracy: float | None
    """Share of right answers; no answer is a wrong one. None for a pass that does not answer."""


def answer_freely(
    backbone: Backbone,
    cot_format: CotFormat,
    samples: Sequence[Sample],
    recipe: Recipe,
    between: Callable[[], None] = lambda: None,
) -> list[Completion]:
    """Greedy answers within the recipe's budgets; the model is left in the mode it was in.

    Args:
        backbone: the model.
        cot_format: the format, or one pass of it.
        samples: what is asked.
        recipe: its budgets.
        between: called before each batch of questions.
    """
    if not samples:
        return []
    training = backbone.model.training
    backbone.model.eval()
    try:
        engine = LocalEngine(backbone, cot_format, recipe.data.max_pixels)
        config = recipe.search.model_copy(update={"strategy": "greedy", **UNBOUNDED})
        size = recipe.evaluation.batch_size
        completions: list[Completion] = []
        with whole(backbone.model):
            for begin in range(0, len(samples), size):
                between()
                completions += answer(engine, cot_format, samples[begin : begin + size], config)
        return completions
    finally:
        backbone.model.train(training)


def measure(
    backbone: Backbone,
    cot_format: CotFormat,
    samples: Sequence[Sample],
    recipe: Recipe,
    between: Callable[[], None] = lambda: None,
) -> Quality:
    """Greedy answers to the samples, and how many are valid and right; see `answer_freely`."""
    completions = answer_freely(backbone, cot_format, samples, recipe, between)
    valid = sum(c.parsed.outcome == "complete" for c in completions)
    accuracy = None
    if any(stage.is_answer for stage in cot_format.stages):
        golds = [sample.last.answer or cot_format.short_answer(cot_format.gold(sample.last)) for sample in samples]
        right = sum(same(c.parsed.answer, gold or "") for c, gold in zip(completions, golds, strict=True))
        accuracy = right / len(samples)
    return Quality(valid / len(samples), accuracy)
