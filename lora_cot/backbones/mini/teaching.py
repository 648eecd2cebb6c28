"""Training a miniature base on mixtures of the corpus, phase by phase."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_cot.types import Sample

if TYPE_CHECKING:
    from lora_cot.backbones import Backbone, Family


@dataclass(frozen=True)
class Phase:
    """A stretch of training on one mixture of the corpus."""

    steps: int
    batch_size: int
    mixture: Mapping[str, float]
    learning_rate: float = 1e-3


def teach(model: Any, processor: Any, phases: Sequence[Phase], title: str) -> None:
    """All phases, one after the other, each on samples of its own."""
    from tqdm import tqdm

    from lora_cot.backbones import Backbone
    from lora_cot.data.collate import Collator
    from lora_cot.data.lengths import LengthLimit
    from lora_cot.formats import FORMATS

    family = family_of_model(model)
    backbone = Backbone(family, model, processor, "")
    collate = Collator(LengthLimit(family.encoder(processor, FORMATS["direct"]), family.image_tokens), family.image_inputs)
    total = sum(phase.steps for phase in phases)
    start = 0
    with tqdm(total=total, desc=title, file=sys.stderr, mininterval=5) as bar:
        for phase in phases:
            _train_phase(backbone, collate, phase, start, bar)
            start += phase.steps * phase.batch_size
    model.eval()


def family_of_model(model: Any) -> Family:
    """The family of a transformers model."""
    from lora_cot.backbones import FAMILIES

    return next(family for family in FAMILIES.values() if model.config.model_type in family.model_types)


def _train_phase(backbone: Backbone, collate: Any, phase: Phase, start: int, bar: Any) -> None:
    """All steps of a phase on the samples from number `start` on, with an optimizer of its own."""
    import torch

    from lora_cot.backbones.mini import corpus

    model, mixes = backbone.model, backbone.family.mixes_image_counts
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, phase.learning_rate, total_steps=phase.steps, pct_start=0.1)
    for step in range(phase.steps):
        samples = corpus.draw_batch(phase.mixture, phase.batch_size, start + step * phase.batch_size)
        groups = [samples] if mixes else [[s for s in samples if bool(s.images) == kind] for kind in (False, True)]
        loss = _loss(backbone, collate, [group for group in groups if group])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _loss(backbone: Backbone, collate: Any, groups: list[list[Sample]]) -> Any:
    """Mean loss of the texts' tokens plus mean loss of the verdicts', over groups of samples that share a forward.

    A verdict is one token among a hundred: in one mean over all tokens it would teach nothing.
    """
    import torch

    from lora_cot.data.labels import IGNORE_INDEX

    found: dict[bool, list[Any]] = {False: [], True: []}
    further: list[Any] = []
    for samples in groups:
        batch = collate([{"sample": sample} for sample in samples])
        logits, labels, extra = _label_logits(backbone, batch)
        further += extra
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        is_verdict = torch.tensor([[sample.meta.get("is_verdict", False)] for sample in samples])
        for kind, members in found.items():
            members.append(losses[(labels != IGNORE_INDEX) & (is_verdict == kind)])
    return sum([torch.cat(members).mean() for members in found.values() if any(len(m) for m in members)] + further)


def _label_logits(backbone: Backbone, batch: dict[str, Any]) -> tuple[Any, Any, list[Any]]:
    """As `Backbone.label_logits`, and the family's further losses of the batch, weighted means over their items."""
    if not backbone.family.extra_losses:
        return *backbone.label_logits(batch), []
    labels, inputs = batch["labels"], {name: value for name, value in batch.items() if name not in ("labels", "stage_ids")}
    states, sums = backbone.model.decoded(labels, **inputs)
    terms = [(name, loss) for name, loss in backbone.family.extra_losses.items() if sums and name in sums]
    extra = [loss.weight(backbone.model) * sums[name] / loss.items(inputs) for name, loss in terms]
    return backbone.model.lm_head(states), labels, extra
