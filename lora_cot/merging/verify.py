"""Two models on the same held-out samples: their distributions over gold answers, and what each answers by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lora_cot.backbones import Backbone
from lora_cot.data.collate import batch, encode
from lora_cot.engines.local import LocalEngine
from lora_cot.formats import CotFormat
from lora_cot.recipe import Recipe
from lora_cot.recipe.schema import SearchSection
from lora_cot.recipe.search import UNBOUNDED
from lora_cot.search.run import answer
from lora_cot.types import Sample

KEPT = 64
"""Likeliest tokens whose logits are kept for a comparison; all logits of a large vocabulary would not fit."""
ROWS = 64
"""Positions whose logits are looked at at once, in float32."""
PROBES, QUESTIONS = 64, 8
"""Held-out samples whose gold answers are looked at; how many of them are also answered."""
ANSWER_TOKENS = 256
"""Longest answer to one of the questions, whatever the format allows; two models that part do so well before."""


@dataclass(frozen=True)
class Probes:
    """What models are compared on."""

    samples: Sequence[Sample]
    """With gold answers."""
    questions: Sequence[Sample]
    """Those of them that are answered too."""
    search: SearchSection
    """How: greedily, within budgets."""
    max_pixels: int
    batch_size: int
    """Questions answered at once."""

    @property
    def with_images(self) -> int:
        """Samples that show an image."""
        return sum(bool(sample.images) for sample in self.samples)


@dataclass(frozen=True)
class Recorded:
    """A model's logits at every trained position of some samples, and its answers."""

    ids: torch.Tensor
    """(T, K) the tokens whose logits were kept, the likeliest of this model or of the one it is compared with."""
    logits: torch.Tensor
    """(T, K + 1); last, the logarithm of what all other tokens' exponentials come to."""
    top1: torch.Tensor
    """(T,) the likeliest token."""
    loss: float
    """Mean of the tokens' negative log-probabilities."""
    answers: tuple[str, ...] | None
    """Whole texts, greedily; None if it was not asked."""
    dtype: str
    """Precision that it was computed in."""


@dataclass(frozen=True)
class Agreement:
    """How far two models are from each other."""

    tokens: int
    max_logit_difference: float
    """Among the likeliest tokens at every position."""
    top1_agreement: float
    """Share of positions where both find the same token likeliest, or where the first, by its own logits, holds the second's
    token equally likely: no further behind than what its precision can tell apart."""
    kl: float
    """Mean over positions of KL(first ‖ second) in nats, over the whole vocabulary but for one thing: 64 tokens count one by
    one, and all the others as one. They are the likeliest of the model that was recorded first in the merge: the adapter's
    on the base's own weights where the merge is tried onto both, whichever two are compared. That is at most the KL over
    single tokens, and differs from it by what happens within the tail."""
    questions: int | None = None
    """How many were answered by both; None if one was not asked."""
    answers_equal: int | None = None
    """How many of the texts are the same, letter by letter."""


def choose_probes(samples: Sequence[Sample], recipe: Recipe, cot_format: CotFormat) -> Probes:
    """What to compare on: samples with images as far as there are any, and where there are both kinds a few without.

    Args:
        samples: with gold answers, in the order they are preferred.
        recipe: its search section has the budgets of answers.
        cot_format: the format, or one pass of it.
    """
    chosen, asked = _mixed(samples, PROBES), _mixed(samples, QUESTIONS)
    most = max(1, ANSWER_TOKENS // len(cot_format.stages))
    budgets = {stage.name: {"max_new_tokens": min(most, recipe.search.budget(stage))} for stage in cot_format.stages}
    search = SearchSection.model_validate({**recipe.search.model_dump(), "strategy": "greedy", "stages": budgets, **UNBOUNDED})
    return Probes(chosen, asked, search, recipe.data.max_pixels, recipe.evaluation.batch_size)


def _mixed(samples: Sequence[Sample], count: int) -> list[Sample]:
    """So many of the samples; an eighth without image at most, as long as there are enough with one."""
    seen = [sample for sample in samples if sample.images]
    blind = [sample for sample in samples if not sample.images]
    without = min(len(blind), max(count // 8, count - len(seen)))
    return [*seen[: count - without], *blind[:without]]


@torch.inference_mode()
def record(
    backbone: Backbone, cot_format: CotFormat, probes: Probes, like: Recorded | None = None, answers: bool = True
) -> Recorded:
    """A model's logits over the samples' gold answers, and its own answers.

    Args:
        backbone: the model.
        cot_format: how the answers are written.
        probes: what it is shown; a row at a time.
        like: keep the logits of the tokens that this record kept.
        answers: let it answer the questions too.
    """
    backbone.model.eval()
    encoder = backbone.encoder(cot_format)
    pieces: list[tuple[torch.Tensor, ...]] = []
    position = 0
    for sample in probes.samples:
        inputs = batch([encode(encoder, sample, True, probes.max_pixels)], backbone.processor, backbone.family.image_inputs)
        logits, labels = (found[0].cpu() for found in backbone.label_logits(inputs))
        places = (labels >= 0).nonzero()[:, 0]
        for part in places.split(ROWS):
            chosen = None if like is None else like.ids[position : position + len(part)]
            pieces.append(_rows(logits[part].float(), labels[part], chosen))
            position += len(part)
    ids, kept, top1, losses = (torch.cat(column) for column in zip(*pieces, strict=True))
    written = _answers(backbone, cot_format, probes) if answers else None
    return Recorded(ids, kept, top1, losses.mean().item(), written, str(backbone.model.dtype).removeprefix("torch."))


def _rows(logits: torch.Tensor, labels: torch.Tensor, chosen: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Of (t, V) logits: what `Recorded` keeps of them, and the losses."""
    losses = torch.nn.functional.cross_entropy(logits, labels.long(), reduction="none")
    top1 = logits.argmax(-1)
    ids = logits.topk(min(KEPT, logits.shape[-1])).indices if chosen is None else chosen
    kept = logits.gather(-1, ids)
    rest = logits.scatter_(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
    return ids, torch.cat((kept, rest), -1), top1, losses


def _answers(backbone: Backbone, cot_format: CotFormat, probes: Probes) -> tuple[str, ...]:
    """What the model writes by itself."""
    spelled = cot_format.spelled(backbone.family.tag_style)
    engine = LocalEngine(backbone, spelled, probes.max_pixels)
    asked = [probes.questions[n : n + probes.batch_size] for n in range(0, len(probes.questions), probes.batch_size)]
    return tuple(found.text for some in asked for found in answer(engine, spelled, some, probes.search))


def _chosen_alike(first: Recorded, second: Recorded) -> torch.Tensor:
    """(T,) whether the second's likeliest token is one of the first's: which of two tied tokens comes out is rounding."""
    kept = first.logits[:, :-1]
    best, rounding = kept.amax(-1), torch.finfo(getattr(torch, first.dtype)).eps
    behind = best - kept.masked_fill(first.ids != second.top1[:, None], float("-inf")).amax(-1)
    return (first.top1 == second.top1) | (behind <= rounding * best.abs())


def compare(first: Recorded, second: Recorded) -> Agreement:
    """How far two records of the same samples are apart; the second must have been taken `like` the first."""
    p, q = first.logits.double().log_softmax(-1), second.logits.double().log_softmax(-1)
    terms = p.exp() * (p - q)
    kl = torch.where(p == float("-inf"), 0.0, terms).sum(-1)  # no tail: a vocabulary of 64 tokens
    questions = equal = None
    if first.answers is not None and second.answers is not None:
        questions = len(first.answers)
        equal = sum(mine == theirs for mine, theirs in zip(first.answers, second.answers, strict=True))
    return Agreement(
        len(first.top1),
        (first.logits - second.logits)[:, :-1].abs().max().item(),
        _chosen_alike(first, second).double().mean().item(),
        kl.mean().item(),
        questions,
        equal,
    )
