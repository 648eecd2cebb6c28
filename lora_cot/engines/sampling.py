"""Drawing tokens: one seed a row, so that the same row draws the same tokens in any batch."""

from __future__ import annotations

import random

import torch

from lora_cot.engines.base import Sampling


def draw(logits: torch.Tensor, sampling: Sampling, draws: list[random.Random]) -> tuple[list[int], list[float]]:
    """One token for each row and its log-probability at temperature 1."""
    logprobs = logits.log_softmax(-1)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        probabilities, order = (logits / sampling.temperature).softmax(-1).sort(-1, descending=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
        reach = probabilities.cumsum(-1)
        uniform = torch.tensor([draw.random() for draw in draws], device=logits.device)
        place = (reach <= (uniform * reach[:, -1])[:, None]).sum(-1)
        place = place.minimum((probabilities > 0).sum(-1) - 1)  # a draw may round up to 1
        tokens = order.gather(-1, place[:, None])[:, 0]
    return tokens.tolist(), logprobs.gather(-1, tokens[:, None])[:, 0].tolist()
