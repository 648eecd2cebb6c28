"""The one loss: negative log-likelihood of the answer's tokens, weighted and told apart by stage."""

from __future__ import annotations

import torch


def stage_loss(
    log_probs: torch.Tensor, stage_ids: torch.Tensor, weights: torch.Tensor, num_items: torch.Tensor | int
) -> torch.Tensor:
    """Weighted sum over tokens divided by the number of trained tokens.

    Args:
        log_probs: (B, T) log-probability of each label, anything where nothing is trained.
        stage_ids: (B, T) stage of each label, -1 where nothing is trained.
        weights: (S,) weight of each stage.
        num_items: trained tokens of all batches that make one step, so that accumulation changes nothing.
    """
    trained = stage_ids >= 0
    weighted = -log_probs * weights[stage_ids.clamp(min=0)]
    return weighted.masked_fill(~trained, 0.0).sum() / torch.as_tensor(num_items).clamp(min=1)


def stage_sums(log_probs: torch.Tensor, is_top1: torch.Tensor, stage_ids: torch.Tensor, stages: int) -> torch.Tensor:
    """(S, 3): for each stage the summed loss, the likeliest tokens that were right, and the trained tokens."""
    sums = log_probs.new_zeros((stages + 1, 3), dtype=torch.float32)  # the last row takes what is not trained
    index = torch.where(stage_ids < 0, stages, stage_ids).flatten()
    values = torch.stack([-log_probs, is_top1.to(log_probs.dtype), torch.ones_like(log_probs)], dim=-1)
    return sums.index_add_(0, index, values.detach().float().flatten(0, 1))[:stages]
