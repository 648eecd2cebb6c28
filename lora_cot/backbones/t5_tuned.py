"""T5 with a ViT or CLIP that is trained with it: `model.vision_training: full` or `lora`.

The same features and the same fusion as of `t5_vision`, where the encoder is frozen and no part of the model. What its
readers ask DPMM-CoT (arXiv 2312.08762) for first: learned latents beside features that were fine-tuned, not frozen ones.

Traps:
- A row without an image is given zeros for pixels, which no processor makes of an image: its mean is no whole number.
- What is not trained is left in the model's own precision; an encoder that is trained in full is in float32.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lora_cot.backbones.joined import Joining
from lora_cot.backbones.pixels import Pixels
from lora_cot.backbones.t5_tuned_model import T5TunedConfig
from lora_cot.backbones.t5_vision import T5_VISION, encoder_place, new_parts, other_features
from lora_cot.backbones.t5_vision import load_config as load_frozen_config
from lora_cot.backbones.vision_encoder import (
    DescribedEncoder,
    LoadedEncoder,
    described,
    find_encoder,
    image_processor,
    read_pixels,
)
from lora_cot.errors import BackboneError, Problem
from lora_cot.recipe.model import ModelSection
from lora_cot.types import Image

PREFIX = "encoder.vision_encoder."
"""Of the encoder's tensors in a checkpoint."""


@dataclass
class T5TunedProcessor:
    """The tokenizer, and what makes pixels of an image."""

    tokenizer: Any
    image_processor: Any
    features: Pixels | None

    def look(self, image: Image, max_pixels: int) -> dict[str, torch.Tensor]:
        """vision_features (3, height, width) of an image, if it is to be seen."""
        return {} if self.features is None else {"vision_features": self.features.of(image, max_pixels)}

    def save_pretrained(self, folder: Path) -> None:
        """The tokenizer, and how images are read."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def vision_joining(base: str, section: ModelSection, weights: bool) -> Joining:
    """The vision encoder that a recipe names, or that a T5 which has learned to see was trained with.

    Args:
        base: of the T5.
        section: names the encoder.
        weights: whether its weights are needed.

    Raises:
        BackboneError: there is none, or it is of another kind.
    """
    frozen = load_frozen_config(base, section)
    if frozen.vision_features == "none":
        what = f"{section.vision_training}, but this checkpoint has learned from text alone"
        raise BackboneError(Problem("model.vision_training", what, "take it out, or name another base"))
    found = find_encoder(str(frozen.vision_features), *encoder_place(base, frozen))

    def config(own: dict[str, Any]) -> Any:
        seen = {key: getattr(frozen, key) for key in ("vision_features", "image_width", "image_patches")}
        named = {"encoder_layout": found.config, "architectures": ["T5TunedForConditionalGeneration"]}
        return T5TunedConfig(**{**own, **seen, **named, "vision_encoder": None, "vision_revision": None})

    def save(folder: Path) -> None:
        image_processor(found).save_pretrained(folder)

    return Joining([found.path, found.key()], config, functools.partial(_tensors, found), save)


def _tensors(found: DescribedEncoder) -> dict[str, torch.Tensor]:
    return {f"{PREFIX}{name}": t for name, t in LoadedEncoder(found, torch.device("cpu")).model.state_dict().items()}


def load_config(base: str, section: ModelSection) -> T5TunedConfig:
    """The configuration of a checkpoint with its vision encoder inside, with what the recipe says of it.

    Raises:
        BackboneError: the recipe asks for other features, or for another encoder.
    """
    values, _ = T5TunedConfig.get_config_dict(base, revision=section.revision)
    values = {key: value for key, value in values.items() if key not in ("model_type", "architectures")}
    known, trained = values["vision_features"], values.get("vision_training")
    problems = other_features(section, known)
    problems += [
        Problem(f"model.{key}", "this checkpoint has its own", "take it out")
        for key in ("vision_encoder", "vision_revision")
        if trained is not None and getattr(section, key) is not None
    ]
    if section.diffusion is not None:
        remedy = "take it out, or name a plain T5 as model.base"
        problems.append(Problem("model.diffusion", f"this checkpoint was trained with {known} features", remedy))
    if problems:
        raise BackboneError(problems)
    settings = {"vision_training": section.vision_training or trained, "vision_features": section.vision_features or known}
    return T5TunedConfig(**{**values, **settings})


def load_processor(base: str, section: ModelSection) -> T5TunedProcessor:
    """The tokenizer of a checkpoint, and how its images are read."""
    from transformers import AutoTokenizer

    config = load_config(base, section)
    tokenizer = AutoTokenizer.from_pretrained(base, revision=section.revision)
    inside = described(config.kind, base, section.revision, config.encoder_layout or {})
    reader = image_processor(inside)
    read = functools.partial(read_pixels, processor=reader, encoder=inside)
    features = None if config.vision_features == "none" else Pixels((3, *inside.image_size), read)
    return T5TunedProcessor(tokenizer, reader, features)


def trained_in_full(model: Any) -> tuple[str, ...]:
    """The fusion, and the encoder as the recipe says; nothing, where all that they are given are zeros."""
    parts = new_parts(model)
    return (*parts, "vision_encoder") if parts and model.config.vision_training == "full" else parts


T5_TUNED = replace(
    T5_VISION,
    name="t5_vision_tuned",
    model_types=("t5_vision_tuned",),
    parts={**T5_VISION.parts, "vision_encoder": PREFIX.removesuffix(".")},
    trained_in_full=trained_in_full,
    load_config=load_config,
    load_processor=load_processor,
    save_whole=lambda processor, folder: None,
)
