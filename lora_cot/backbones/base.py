"""What a family of base models must tell of itself, and a loaded model with its processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lora_cot.data.collate import ImageInputs


@dataclass(frozen=True)
class Family:
    """One family of base models; each is declared in one file of this folder."""

    name: str
    model_types: tuple[str, ...]
    """Values of `model_type` in a checkpoint's config.json."""
    parts: Mapping[str, str]
    """Part name → path of the module inside the model. The names are the same for all families: vision_encoder, projector,
    language_model, lm_head."""
    image_inputs: ImageInputs
    tag_style: str = "xml"
    """How this family's tokenizers can spell stage tags."""
    auto_class: str = "AutoModelForImageTextToText"


@dataclass
class Backbone:
    """A base model, loaded, with everything that must travel with it."""

    family: Family
    model: Any
    """The transformers model, or a PEFT model around it."""
    processor: Any
    base: str
    """Path or hub id it was loaded from."""
    revision: str | None = None

    @property
    def base_model(self) -> nn.Module:
        """The transformers model, without adapters around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def place(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs on the model's device; pixels and other fractions in its precision."""
        dtype, device = self.model.dtype, self.device
        return {name: t.to(device, dtype) if t.is_floating_point() else t.to(device) for name, t in inputs.items()}

    def part(self, name: str) -> nn.Module:
        """The module of a part."""
        return self.base_model.get_submodule(self.family.parts[name])


def part_of(family: Family, module_name: str) -> str | None:
    """The part a module belongs to, by its dotted path in the model; the longest matching path wins."""
    owners = [(path, part) for part, path in family.parts.items() if f"{module_name}.".startswith(f"{path}.")]
    return max(owners, default=("", None), key=lambda owner: len(owner[0]))[1]
