"""What a family of base models must tell of itself, and a loaded model with its processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from lora_cot.data.collate import ImageInputs

Size = tuple[int, int]
"""Width and height of an image in pixels."""


def auto_processor(base: str, revision: str | None) -> Any:
    """The processor that transformers itself chooses."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(base, revision=revision)


def text_positions(model: Any, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions that count the tokens, image slots among them."""
    mask = inputs["attention_mask"]
    return (mask.cumsum(-1) - 1).clamp(min=0), mask.new_zeros(len(mask))


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
    """What its batches need besides text."""
    image_tokens: Callable[[Any, Sequence[Size]], list[int]]
    """(processor, sizes of a sample's images) to the number of tokens that stand for each, from the sizes alone."""
    mixes_image_counts: bool = True
    """Rows with and without images, or with different numbers of them, may share a batch."""
    no_fp16: str = ""
    """Why this family cannot be trained in float16; empty if it can."""
    tag_style: str = "xml"
    """How this family's tokenizers can spell stage tags."""
    auto_class: str = "AutoModelForImageTextToText"
    load_processor: Callable[[str, str | None], Any] = auto_processor
    """(folder or hub id, revision) to its processor."""
    positions: Callable[[Any, Mapping[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]] = text_positions
    """(transformers model, inputs) to position_ids of a prompt, and (B,) what a later token's position is ahead of its
    number in the text."""
    still_layers: Callable[[Any], frozenset[int]] = lambda model: frozenset()
    """Layers whose keys and values come from the image and do not grow with the text."""
    unused_layers: Callable[[Any], str] = lambda model: r"(?!)"
    """A pattern of module paths whose output the model leaves unused, so that an adapter there would learn nothing."""
    held_inputs: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda inputs: {}
    """Of a prompt's inputs, what every later token is fed with too, (B, 1, …)."""

    def batch_key(self, images: int) -> int:
        """Samples may share a batch where this is equal: at least, images and none are never mixed."""
        return min(images, 1) if self.mixes_image_counts else images


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
    adapter: str | None = None
    """Which of the model's adapters answers, where it has several."""
    merged: Mapping[str, Backbone] = field(default_factory=dict)
    """Models by pass, where each pass was merged into one of its own."""

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

    def for_pass(self, name: str) -> Backbone:
        """The model that generates one pass of a format: its own, or this one with its adapter."""
        if name in self.merged:
            return self.merged[name]
        return replace(self, adapter=name) if name in getattr(self.model, "peft_config", ()) else self

    def use_adapter(self) -> None:
        """Switch to the adapter that answers; nothing is loaded."""
        if self.adapter is not None and self.model.active_adapters != [self.adapter]:
            self.model.set_adapter(self.adapter)


def part_of(family: Family, module_name: str) -> str | None:
    """The part a module belongs to, by its dotted path in the model; the longest matching path wins."""
    owners = [(path, part) for part, path in family.parts.items() if f"{module_name}.".startswith(f"{path}.")]
    return max(owners, default=("", None), key=lambda owner: len(owner[0]))[1]
