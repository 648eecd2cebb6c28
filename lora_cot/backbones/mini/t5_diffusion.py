"""A tiny T5 with a tiny VAE and UNet: the miniature of DPMM-CoT, in the layout of Stable Diffusion 1.4.

Scenes have 2×2 cells and become 64 pixels: 16×16 latents, and a patch of the latents is a quarter of a cell.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from lora_cot.backbones.latents import Pixels
from lora_cot.backbones.mini.t5_vision import begin_copying, t5_values
from lora_cot.backbones.t5_diffusion import T5DiffusionProcessor, fit_patches
from lora_cot.backbones.t5_diffusion_model import T5DiffusionConfig, T5DiffusionForConditionalGeneration

SETTINGS: dict[str, Any] = {"image_size": 64, "patch": 4, "steps": 3}
CONTEXT_WIDTH = 64
"""Of the UNet's cross-attention; a T5 of another width is projected to it."""


def vae_config(width: int = 16) -> dict[str, Any]:
    """Of an AutoencoderKL that makes latents of a quarter of an image's sides."""
    return {
        "block_out_channels": [width, 2 * width, 2 * width],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }


def unet_config(width: int = 32) -> dict[str, Any]:
    """Of a UNet2DConditionModel of two resolutions."""
    return {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [width, 2 * width],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": CONTEXT_WIDTH,
        "norm_num_groups": 4,
    }


def scheduler_config() -> dict[str, Any]:
    """Stable Diffusion's."""
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def make_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> T5DiffusionForConditionalGeneration:
    """A random one; see `t5_vision.make_model`.

    Args:
        tokenizer: gives the size of the vocabulary.
        width: D.
        layers: of the encoder, and of the decoder.
    """
    config = T5DiffusionConfig(
        **t5_values(tokenizer, width, layers),
        vision_features="diffusion",
        vae_config=vae_config(),
        unet_config=unet_config(),
        scheduler_config=scheduler_config(),
        diffusion=SETTINGS,
    )
    fit_patches(config)
    model = T5DiffusionForConditionalGeneration(config)
    begin_copying(model, config)
    return model


def make_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> T5DiffusionProcessor:
    """The tokenizer, and pixels: the VAE is trained with the rest."""
    return T5DiffusionProcessor(tokenizer, Pixels(SETTINGS["image_size"]), "zeros")


MADE = (make_model, make_processor)
