"""The losses: negative log-likelihood of the answer's tokens, weighted and told apart by stage, and what a model adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_cot.backbones import Backbone


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


class FurtherLosses:
    """What a model adds to the loss of its texts while it is trained: see `backbones.base.ExtraLoss`."""

    def __init__(self, backbone: Backbone):
        self._losses = backbone.family.extra_losses
        self._weights = {name: one.weight(backbone.base_model) for name, one in self._losses.items()}
        self._items: dict[str, torch.Tensor] = {}

    @property
    def names(self) -> list[str]:
        """What they are logged as."""
        return [*self._losses]

    def begin_step(self, batches: Sequence[Mapping[str, torch.Tensor]], device: torch.device, gather: Any) -> None:
        """Count the items of all batches that make one step, so that accumulation and ranks change nothing.

        Args:
            batches: of this rank.
            device: it computes on.
            gather: all ranks' numbers from one, where the step is theirs together.
        """
        for name, one in self._losses.items():
            count = torch.tensor(sum(int(one.items(batch)) for batch in batches), device=device)
            self._items[name] = gather(count).sum() if gather else count

    def of(self, output: Mapping[str, Any]) -> torch.Tensor | float:
        """Their weighted sum for a batch, each divided by the items of its step; 0 where the model gave none."""
        sums = output.get("extra_losses") or {}
        return sum(self._weights[name] * total / self._items[name].clamp(min=1) for name, total in sums.items())

    def sums(self, output: Mapping[str, Any], batch: Mapping[str, torch.Tensor], device: torch.device) -> torch.Tensor:
        """(E, 3) as `stage_sums`: for each the summed loss, nothing, and the items; zeros where the model gave none."""
        given = output.get("extra_losses") or {}
        rows = torch.zeros(len(self._losses), 3, device=device)
        for row, (name, one) in zip(rows, self._losses.items(), strict=True):
            if name in given:
                row[0], row[2] = given[name].detach(), one.items(batch)
        return rows
