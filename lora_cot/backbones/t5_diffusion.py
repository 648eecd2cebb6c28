"""T5 with latents that are learned for the task (DPMM-CoT, arXiv 2312.08762): `model.vision_features: diffusion`.

Traps:
- What is not trained is left in the model's own precision; VAE and UNet that are trained in full are in float32.
- Attention is what adapters go to in VAE and UNet; the text's half of it learns nothing where the UNet sees no text.
- Convolutions are never quantised: Stable Diffusion's UNet is two thirds of them.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage

from lora_cot.backbones.base import ExtraLoss
from lora_cot.backbones.feature_cache import image_hash
from lora_cot.backbones.latents import FrozenVae, in_square
from lora_cot.backbones.pixels import Pixels
from lora_cot.backbones.t5_diffusion_model import DEFAULTS, T5DiffusionConfig
from lora_cot.backbones.t5_vision import T5_VISION, other_features
from lora_cot.backbones.vision_features import VisionFeatures
from lora_cot.data.images import MAX_PIXELS
from lora_cot.data.labels import Encoded
from lora_cot.errors import BackboneError, Problem
from lora_cot.recipe.model import ModelSection
from lora_cot.types import Image

CHECKPOINT_KEYS = ("checkpoint", "revision")
FIXED = (*CHECKPOINT_KEYS, "image_size", "patch", "cross_attention")
"""Settings that a checkpoint which was trained has its weights for."""


@dataclass
class T5DiffusionProcessor:
    """The tokenizer, and what makes latents or pixels of an image."""

    tokenizer: Any
    features: VisionFeatures | Pixels | None
    blank: str
    """What a row without an image is given: zeros, or a white image."""

    def look(self, image: Image, max_pixels: int) -> dict[str, torch.Tensor]:
        """vision_features (C, H, W) of an image, and the image_seed () that its noise at inference follows from."""
        if self.features is None:
            return {}
        seed = int(image_hash(image, max_pixels)[:15], 16)
        return {"vision_features": self.features.of(image, max_pixels), "image_seed": torch.tensor(seed)}

    def stand_in(self) -> dict[str, torch.Tensor]:
        """As `look`, of no image at all."""
        if self.features is None:
            return {}
        return {"vision_features": torch.zeros(self.features.shape), "image_seed": torch.tensor(0)}

    def nothing(self) -> torch.Tensor:
        """(C, H, W) that a row without an image is given."""
        assert self.features is not None
        if self.blank == "zeros":
            return torch.zeros(self.features.shape)
        file = io.BytesIO()
        PILImage.new("RGB", (8, 8), "white").save(file, "PNG")
        return self.features.of(file.getvalue(), MAX_PIXELS)

    def save_pretrained(self, folder: Path) -> None:
        """The tokenizer alone: the VAE is part of the model."""
        self.tokenizer.save_pretrained(folder)


def load_config(base: str, section: ModelSection) -> T5DiffusionConfig:
    """The configuration of a checkpoint with diffusion features, with the settings of the recipe.

    Raises:
        BackboneError: the recipe asks for other features, or for settings that the checkpoint's weights do not fit.
    """
    values, _ = T5DiffusionConfig.get_config_dict(base, revision=section.revision)
    values = {key: value for key, value in values.items() if key not in ("model_type", "architectures")}
    problems = other_features(section, "diffusion")
    problems += [
        Problem(f"model.{key}", "diffusion features are made by no vision encoder", "take it out")
        for key in ("vision_encoder", "vision_revision", "vision_training")
        if getattr(section, key) is not None
    ]
    given = {} if section.diffusion is None else section.diffusion.model_dump(exclude_none=True)
    trained = values.get("diffusion")
    if trained is not None:
        what = "this checkpoint has its own"
        problems += [
            Problem(f"model.diffusion.{key}", what, "take it out")
            for key in FIXED
            if key in given and given[key] != trained.get(key, DEFAULTS.get(key))
        ]
    if problems:
        raise BackboneError(problems)
    settings = {**(trained or {}), **{key: value for key, value in given.items() if key not in CHECKPOINT_KEYS}}
    config = T5DiffusionConfig(**{**values, "diffusion": settings, "vision_features": section.vision_features or "diffusion"})
    fit_patches(config)
    return config


def fit_patches(config: T5DiffusionConfig) -> None:
    """Work out the shape of the patches, and see that images can be cut into them.

    Raises:
        BackboneError: they cannot, or cleaning would begin at a step that there is not.
    """
    patch, side, vae, unet = config.setting("patch"), config.setting("image_size"), config.vae_config, config.unet_config
    assert vae is not None and unet is not None
    steps = (config.scheduler_config or {}).get("num_train_timesteps", 1000)
    if config.setting("first_step") >= steps:
        what = f"{config.setting('first_step')}, and the schedule has {steps} steps"
        raise BackboneError(Problem("model.diffusion.first_step", what, f"set it to {steps - 1} or less"))
    unit = 2 ** (len(vae["block_out_channels"]) - 1) * patch
    halves = 2 ** (len(unet["block_out_channels"]) - 1)
    channels, height, width = config.latent_shape
    if side % unit or height % halves:
        least = max(unit, unit // patch * halves)
        what = f"{side} pixels cannot be cut into patches of {patch} latents, or not halved as often as the UNet halves them"
        raise BackboneError(Problem("model.diffusion.image_size", what, f"take a multiple of {least}"))
    config.image_width, config.image_patches = channels * patch**2, (height // patch) * (width // patch)


def square_pixels(side: int) -> Pixels:
    """Images for a VAE that is trained, of that height and width."""
    return Pixels((3, side, side), functools.partial(in_square, side=side))


def load_processor(base: str, section: ModelSection) -> T5DiffusionProcessor:
    """The tokenizer of a checkpoint, with what its VAE is fed with or makes."""
    from transformers import AutoTokenizer

    config = load_config(base, section)
    tokenizer = AutoTokenizer.from_pretrained(base, revision=section.revision)
    side = config.setting("image_size")
    features: VisionFeatures | Pixels | None = None
    if config.vision_features != "none":
        features = square_pixels(side)
        if config.setting("vae") == "frozen":
            vae = FrozenVae(base, config.vae_config or {}, side, config.latent_shape)
            features = VisionFeatures("diffusion", vae)
    return T5DiffusionProcessor(tokenizer, features, config.setting("blank"))


def trained_in_full(model: Any) -> tuple[str, ...]:
    """The fusion, and VAE and UNet as the recipe says; nothing, where all that they are given are zeros."""
    config = model.config
    if config.vision_features == "none":
        return ()
    return ("projector", *(part for part in ("vae", "unet") if config.setting(part) == "full"))


def vision_inputs(processor: Any, rows: list[Encoded], text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """vision_features (B, C, H, W) and image_seed (B,), -1 for a row without an image."""
    if processor.features is None:
        return {}
    seen = [row.image_inputs for row in rows]
    features = [one["vision_features"] if one else processor.nothing() for one in seen]
    seeds = [one.get("image_seed", torch.tensor(-1)) for one in seen]
    return {"vision_features": torch.stack(features).float(), "image_seed": torch.stack(seeds)}


def with_image(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(B,) whether a row has an image."""
    return inputs.get("image_seed", torch.full((1,), -1)) >= 0


def looks_at_text(model: Any) -> bool:
    """Whether the UNet is run and given the text."""
    config = model.config
    return config.vision_features != "none" and config.setting("cross_attention") and config.setting("steps") > 0


def unused_layers(model: Any) -> str:
    """All linear layers of VAE and UNet but those of attention to what they are given."""
    own = r"attn1\.to|attn2\.to" if model.config.setting("cross_attention") else r"attn1\.to"
    return rf"encoder\.diffusion\.(?!.*\.({own}|attentions\.\d+\.to)_).*"


T5_DIFFUSION = replace(
    T5_VISION,
    name="t5_diffusion",
    model_types=("t5_diffusion",),
    parts={**T5_VISION.parts, "vae": "encoder.diffusion.vae", "unet": "encoder.diffusion.unet"},
    image_inputs=vision_inputs,
    trained_in_full=trained_in_full,
    load_config=load_config,
    load_processor=load_processor,
    save_whole=lambda processor, folder: None,
    sees=lambda inputs: bool(with_image(inputs).any()),
    unused_layers=unused_layers,
    looks_at_text=looks_at_text,
    extra_losses={
        "noise": ExtraLoss(lambda model: model.config.setting("noise_weight"), lambda inputs: with_image(inputs).sum())
    },
    stand_in=T5DiffusionProcessor.stand_in,
)
