"""Learning rates that differ: by part, and between LoRA's two matrices (LoRA+, Hayou et al. 2024, arXiv 2402.12354)."""

from __future__ import annotations

from typing import Any

import torch

from lora_cot.backbones import Backbone, part_of
from lora_cot.recipe.schema import LoraSection


def set_learning_rates(optimizer: torch.optim.Optimizer, backbone: Backbone, section: LoraSection) -> None:
    """Split the optimizer's groups by the learning rates of the recipe; nothing else about them changes.

    Args:
        optimizer: fresh: it has taken no step.
        backbone: its parameters' names say which part they belong to.
        section: learning rates of parts, and LoRA+'s ratio.
    """
    rates = {id(p): _rate(backbone, name, section) for name, p in backbone.base_model.named_parameters()}
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        members: dict[float, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            own, ratio = rates.get(id(parameter), (None, 1.0))
            members.setdefault((own or group["lr"]) * ratio, []).append(parameter)
        for rate, parameters in members.items():
            optimizer.add_param_group({**group, "params": parameters, "lr": rate})


def _rate(backbone: Backbone, name: str, section: LoraSection) -> tuple[float | None, float]:
    """A parameter's own learning rate, if its part has one, and the factor that it takes on it."""
    parts: dict[Any, Any] = dict(section.parts)
    part = parts.get(part_of(backbone.family, name))
    is_b = ".lora_B." in name or ".lora_embedding_B." in name
    return part.learning_rate if part else None, section.loraplus_lr_ratio or 1.0 if is_b else 1.0
