"""Drawing tokens: one seed a row, so that the same row draws the same tokens in any batch."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from lora_cot.engines.base import Sampling

LIKELIEST = 256
"""Tokens that are looked at first; sorting a whole vocabulary takes longer than a step of a small model."""


def draw(logits: torch.Tensor, samplings: Sequence[Sampling], draws: Sequence[random.Random]) -> tuple[list[int], list[float]]:
    """One token for each row and its log-probability at temperature 1.

    Args:
        logits: (B, V).
        samplings: how each row draws.
        draws: each row's own; it is asked once for each token drawn, and not where the likeliest is taken.
    """
    logits = logits.float()
    tokens = logits.argmax(-1)
    warm = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if warm:
        scale = torch.tensor([[samplings[row].temperature, samplings[row].top_p] for row in warm]).to(logits.device)
        uniform = torch.tensor([draws[row].random() for row in warm]).to(logits.device)
        mine = logits if len(warm) == len(logits) else logits[warm]
        tokens[warm] = _drawn(mine / scale[:, :1], scale[:, 1:], uniform, LIKELIEST)
    logprobs = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    return tokens.tolist(), logprobs.tolist()


def _drawn(logits: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor, count: int) -> torch.Tensor:
    """(B,) tokens among the likeliest that reach top_p together; that one is among them which crosses it."""
    best, order = logits.topk(min(count, logits.shape[-1]))
    probabilities = (best - logits.logsumexp(-1, keepdim=True)).exp()
    reach = probabilities.cumsum(-1)
    if count < logits.shape[-1] and bool((reach[:, -1:] < top_p).any()):
        return _drawn(logits, top_p, uniform, logits.shape[-1])
    within = probabilities.masked_fill(reach - probabilities >= top_p, 0.0)
    reach = within.cumsum(-1)
    place = (reach <= (uniform * reach[:, -1])[:, None]).sum(-1)
    place = place.minimum((within > 0).sum(-1) - 1)  # a draw may round up to 1
    return order.gather(-1, place[:, None])[:, 0]
