"""Drawing tokens: one seed a row, so that the same row draws the same tokens in any batch."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from lora_cot.engines.base import Sampling

TRIES = 8
"""Draws from the whole vocabulary before it is sorted; nine of ten are within a top_p of 0.9."""


LEAST = 1e-6
"""Of a temperature above 0, and of top_p: smaller ones draw the same."""


def draw(logits: torch.Tensor, samplings: Sequence[Sampling], draws: Sequence[random.Random]) -> tuple[list[int], list[float]]:
    """One token for each row and its log-probability at temperature 1.

    Args:
        logits: (B, V).
        samplings: how each row draws.
        draws: each row's own; it is not asked where the likeliest token is taken.
    """
    logits = logits.float()
    warm = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if len(warm) < len(logits):
        tokens = logits.argmax(-1)
        if warm:
            tokens[warm] = _drawn(logits[warm], [samplings[row] for row in warm], [draws[row] for row in warm])
    else:
        tokens = _drawn(logits, samplings, draws)
    logprobs = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    return tokens.tolist(), logprobs.tolist()


def _drawn(logits: torch.Tensor, samplings: Sequence[Sampling], draws: Sequence[random.Random]) -> torch.Tensor:
    """(B,) tokens within top_p: those for which all likelier ones together have less than that.

    A token drawn from all is within or not, which takes no sorting to see; one that is not is drawn again.
    """
    # What is too small for these numbers is none: no division by 0, and the likeliest token is always within top_p.
    both = [[max(sampling.temperature, LEAST), max(sampling.top_p, LEAST)] for sampling in samplings]
    scale = torch.tensor(both).to(logits.device)
    top_p = scale[:, 1]
    probabilities = (logits / scale[:, :1]).softmax(-1)
    reach = probabilities.cumsum(-1)
    tokens = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    left = torch.arange(len(logits), device=logits.device)
    for _ in range(TRIES):
        mine, reached = (probabilities, reach) if len(left) == len(logits) else (probabilities[left], reach[left])
        uniform = torch.tensor([[draws[row].random()] for row in left.tolist()]).to(logits.device)
        found = torch.searchsorted(reached, uniform * reached[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
        tokens[left] = found[:, 0]
        own = mine.gather(-1, found)
        left = left[(mine * (mine > own)).sum(-1) >= top_p[left]]
        if not len(left):
            return tokens
    uniform = torch.tensor([draws[row].random() for row in left.tolist()]).to(logits.device)
    tokens[left] = _sorted(probabilities[left], top_p[left, None], uniform)
    return tokens


def _sorted(probabilities: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The same with the likeliest first."""
    best, order = probabilities.sort(-1, descending=True)
    best = best.masked_fill(best.cumsum(-1) - best >= top_p, 0.0)
    reach = best.cumsum(-1)
    place = (reach <= (uniform * reach[:, -1])[:, None]).sum(-1)
    place = place.minimum((best > 0).sum(-1) - 1)  # a draw may round up to 1
    return order.gather(-1, place[:, None])[:, 0]
