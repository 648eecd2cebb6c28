"""Two models on the same gold answers, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lora_cot.backbones import Backbone
from lora_cot.data.collate import batch, encode
from lora_cot.formats import CotFormat
from lora_cot.types import Sample

KEPT = 64
"""Likeliest tokens whose logits are kept for a comparison; all logits of a large vocabulary would not fit."""


@dataclass(frozen=True)
class Recorded:
    """A model's logits at every trained position of some samples."""

    ids: torch.Tensor
    """(T, K) the tokens whose logits were kept, the likeliest of this model or of the one it is compared with."""
    logits: torch.Tensor
    """(T, K)."""
    top1: torch.Tensor
    """(T,) the likeliest token."""
    loss: float
    """Mean of the tokens' negative log-probabilities."""


@dataclass(frozen=True)
class Agreement:
    """How far two models are from each other."""

    tokens: int
    max_logit_difference: float
    """Among the likeliest tokens at every position."""
    top1_agreement: float
    """Share of positions where both find the same token likeliest."""


@torch.inference_mode()
def record(
    backbone: Backbone, cot_format: CotFormat, samples: Sequence[Sample], max_pixels: int, like: Recorded | None = None
) -> Recorded:
    """Logits over the samples' gold answers.

    Args:
        backbone: the model.
        cot_format: how the answers are written.
        samples: with gold answers; a row at a time.
        max_pixels: limit of an image.
        like: keep the logits of the tokens that this record kept.
    """
    backbone.model.eval()
    encoder = backbone.encoder(cot_format)
    ids, kept, top1, losses, position = [], [], [], [], 0
    for sample in samples:
        inputs = batch([encode(encoder, sample, True, max_pixels)], backbone.processor, backbone.family.image_inputs)
        logits, labels = (found[0].cpu() for found in backbone.label_logits(inputs))
        logits, labels = logits[labels >= 0].float(), labels[labels >= 0]
        count = len(logits)
        chosen = logits.topk(min(KEPT, logits.shape[-1])).indices if like is None else like.ids[position : position + count]
        ids.append(chosen)
        kept.append(logits.gather(-1, chosen))
        top1.append(logits.argmax(-1))
        losses.append(torch.nn.functional.cross_entropy(logits, labels.long(), reduction="none"))
        position += count
    return Recorded(torch.cat(ids), torch.cat(kept), torch.cat(top1), torch.cat(losses).mean().item())


def compare(first: Recorded, second: Recorded) -> Agreement:
    """How far two records of the same samples are apart; the second must have been taken `like` the first."""
    return Agreement(
        len(first.top1),
        (first.logits - second.logits).abs().max().item(),
        (first.top1 == second.top1).float().mean().item(),
    )
