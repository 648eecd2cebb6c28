"""The model: a T5 whose encoded text is fused with latents that a UNet refines while it looks at that text (DPMM-CoT).

What is the paper's and what is ours: `diffusion.py`, docs/diffusion.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5Stack

from lora_cot.backbones import diffusion
from lora_cot.backbones.fusion import GatedFusion
from lora_cot.backbones.t5_vision_model import SeeingEncoder, T5VisionConfig, T5VisionForConditionalGeneration

DEFAULTS: dict[str, Any] = {
    "vae": "full",
    "unet": "full",
    "image_size": 256,
    "patch": 2,
    "scale_factor": 0.18215,
    "noise_weight": 1.0,
    "steps": 5,
    "first_step": 500,
    "cross_attention": True,
    "blank": "zeros",
}
"""Of `model.diffusion`. All but the scale factor, the training in full and the zeros are ours: the paper is silent."""
CONSTANTS = 8
"""Learned vectors that the UNet looks at in the text's place, where it is not to look at the text: of a single one no
attention would depend on its query."""


class T5DiffusionConfig(T5VisionConfig):
    """T5's configuration, those of VAE, UNet and noise schedule as diffusers writes them, and the settings."""

    model_type = "t5_diffusion"

    vae_config: dict[str, Any] | None = None
    unet_config: dict[str, Any] | None = None
    scheduler_config: dict[str, Any] | None = None
    diffusion: dict[str, Any] | None = None
    """See `DEFAULTS`; None of a checkpoint that was never trained."""

    def setting(self, name: str) -> Any:
        """A value of `diffusion`, or its default."""
        return (self.diffusion or {}).get(name, DEFAULTS[name])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image's latents."""
        vae = self.vae_config or {}
        side = self.setting("image_size") // 2 ** (len(vae["block_out_channels"]) - 1)
        return vae["latent_channels"], side, side


@dataclass
class Seen(BaseModelOutput):
    """An encoder's or decoder's output with the losses that arose on the way."""

    extra_losses: dict[str, torch.Tensor] | None = None
    """By name, each summed over the rows that have one."""


class ConditionedFusion(GatedFusion):
    """The fusion, with where each patch lies, and what the UNet is shown of the text."""

    def __init__(self, width: int, image_width: int, patches: int, context_width: int, sees_text: bool):
        """
        Args:
            width: D, of the text.
            image_width: of a patch of the latents.
            patches: P.
            context_width: of the UNet's cross-attention. Text of another width is projected to it (ours).
            sees_text: whether it is shown the text, or learned constants.
        """
        super().__init__(width, image_width)
        self.positions = nn.Parameter(torch.randn(patches, width))
        self.condition = nn.Linear(width, context_width) if sees_text and width != context_width else None
        self.constants = None if sees_text else nn.Parameter(torch.randn(CONSTANTS, context_width))

    def project(self, image: torch.Tensor) -> torch.Tensor:
        """See `GatedFusion.project`; where there is an image, with a learned vector for each place (ours: a ViT's patches tell
        where they lie, latents do not).
        """
        return super().project(image) + image.flatten(1).any(1)[:, None, None] * self.positions

    def context(self, text: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) that the UNet looks at, and (B, T) where it may.

        Args:
            text: (B, T, D) encoded.
            mask: (B, T) 1 where there is text.
        """
        if self.constants is not None:
            return self.constants.expand(len(text), -1, -1), None
        return (text if self.condition is None else self.condition(text.to(self.condition.weight.dtype))), mask


class DiffusingEncoder(SeeingEncoder):
    """T5's encoder, its output fused with the refined latents of an image."""

    config: T5DiffusionConfig
    fusion: Any

    def __init__(self, config: T5DiffusionConfig):
        super().__init__(config)
        self.diffusion = diffusion.Diffusion(config.vae_config or {}, config.unet_config or {})

    def make_fusion(self, config: Any) -> GatedFusion:
        """See `SeeingEncoder.make_fusion`."""
        context_width = config.unet_config["cross_attention_dim"]
        sizes = (config.d_model, config.image_width, config.image_patches, context_width)
        return ConditionedFusion(*sizes, config.setting("cross_attention"))

    def _init_weights(self, module: Any) -> None:
        begun = getattr(self, "diffusion", None)  # by diffusers
        if isinstance(module, ConditionedFusion):
            for own in (module.positions, module.constants):
                if own is not None:
                    init.normal_(own)
        elif begun is None or not any(module is layer for layer in begun.modules()):
            super()._init_weights(module)

    def forward(self, *args: Any, vision_features: Any = None, image_seed: Any = None, **kwargs: Any) -> Any:
        """T5's own output, its last state (B, T, D) fused; while training with the loss `noise`.

        Args:
            args: T5's.
            vision_features: (B, C, H, W) latents of a frozen VAE, not scaled; else (B, 3, height, width) pixels.
            image_seed: (B,) that an image's noise follows from at inference; -1 for a row without an image. None: no
                row has one.
            kwargs: T5's.
        """
        text = T5Stack.forward(self, *args, **kwargs)[0]
        shape = (len(text), self.config.image_patches, self.config.image_width)
        patches, losses = text.new_zeros(shape), {}
        seeds = [-1] * len(text) if image_seed is None else image_seed.tolist()
        rows = [row for row, seed in enumerate(seeds) if seed >= 0 or self.config.setting("blank") == "white"]
        if rows and vision_features is not None:
            mask = kwargs.get("attention_mask")
            context, mask = self.fusion.context(text[rows], None if mask is None else mask[rows])
            refined, errors = self._refined(vision_features[rows], [seeds[row] for row in rows], context, mask)
            made = diffusion.in_patches(refined, self.config.setting("patch")).to(text.dtype)
            patches = patches.index_copy(0, torch.tensor(rows, device=patches.device), made)
            if errors is not None:
                losses["noise"] = errors[[place for place, row in enumerate(rows) if seeds[row] >= 0]].sum()
        return Seen(self.fusion(text, patches), extra_losses=losses or None)

    def _refined(
        self, image: torch.Tensor, seeds: list[int], context: torch.Tensor, mask: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, C, H, W) refined latents, and while training the mean squared error of each row's prediction."""
        latents = (image if self.config.setting("vae") == "frozen" else self.diffusion.vae(image)).float()
        latents = latents * self.config.setting("scale_factor")
        shares = diffusion.kept(self.config.scheduler_config or {})

        def predict(given: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
            return self.diffusion.predict(given, steps, context, mask)

        if not self.training:
            noise = diffusion.own_noise([max(seed, 0) for seed in seeds], latents)
            first, steps = self.config.setting("first_step"), self.config.setting("steps")
            return diffusion.denoised(latents, noise, shares, predict, first, steps), None
        noise, steps = diffusion.draw(latents, self.config.setting("first_step") + 1)
        given = diffusion.noised(latents, noise, shares[steps])
        # The noise is easiest to find where all latents are alike: the loss of it must not reach what makes them (ours).
        found = predict(given.detach(), steps)
        return diffusion.estimated(given, found, shares[steps]), (found - noise).square().mean((1, 2, 3))


class T5DiffusionForConditionalGeneration(T5VisionForConditionalGeneration):
    """A T5 that sees by latents which are learned with it."""

    config_class = T5DiffusionConfig
    encoder_class = DiffusingEncoder


AutoConfig.register("t5_diffusion", T5DiffusionConfig)
AutoModelForImageTextToText.register(T5DiffusionConfig, T5DiffusionForConditionalGeneration)
