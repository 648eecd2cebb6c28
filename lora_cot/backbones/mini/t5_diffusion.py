"""A tiny T5 with a tiny VAE and UNet: the miniature of DPMM-CoT, in the layout of Stable Diffusion 1.4.

Scenes have 2×2 cells and become 32 pixels: 8×8 latents, and a patch of the latents is a cell. The VAE is taught first and
alone, to paint again what it saw, then the UNet to find the noise in its latents; all three go on together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from lora_cot.backbones import diffusion
from lora_cot.backbones.diffusion import library
from lora_cot.backbones.feature_cache import opened
from lora_cot.backbones.latents import in_square
from lora_cot.backbones.mini import corpus
from lora_cot.backbones.mini.t5_vision import begin_copying, t5_values
from lora_cot.backbones.t5_diffusion import T5DiffusionProcessor, fit_patches, square_pixels
from lora_cot.backbones.t5_diffusion_model import T5DiffusionConfig, T5DiffusionForConditionalGeneration
from lora_cot.data.images import MAX_PIXELS

SETTINGS: dict[str, Any] = {"image_size": 32, "patch": 4, "steps": 3}
CONTEXT_WIDTH = 64
"""Of the UNet's cross-attention; a T5 of another width is projected to it."""
LATENT_DEVIATION = 1 / 0.18215
"""Standard deviation of a VAE's latents, so that the usual scale factor brings it to 1, as of Stable Diffusion's."""


def vae_config(width: int = 8) -> dict[str, Any]:
    """Of an AutoencoderKL that makes latents of a quarter of an image's sides."""
    return {
        "block_out_channels": [width, 2 * width, 2 * width],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }


def unet_config(width: int = 16) -> dict[str, Any]:
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
    return T5DiffusionProcessor(tokenizer, square_pixels(SETTINGS["image_size"]), "zeros")


def teach_to_paint(pixels: torch.Tensor, steps: int = 300, batch: int = 16) -> Any:
    """A VAE that paints again what it saw: diffusers' AutoencoderKL, its latents of Stable Diffusion's size.

    Args:
        pixels: (N, 3, height, width) from -1 to 1.
        steps: of training.
        batch: images of a step.
    """
    vae = library().AutoencoderKL.from_config(vae_config())
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        given = pixels[torch.randint(0, len(pixels), (batch,))]
        found = vae.encode(given).latent_dist
        loss = (vae.decode(found.sample()).sample - given).square().mean() + 1e-4 * found.kl().mean() / found.mean[0].numel()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    with torch.no_grad():
        factor = LATENT_DEVIATION / vae.encode(pixels[:256]).latent_dist.mean.std()
        vae.quant_conv.weight *= factor
        vae.quant_conv.bias *= factor
        vae.post_quant_conv.weight /= factor
    return vae.eval()


def teach_to_clean(unet: Any, latents: torch.Tensor, last_step: int, steps: int = 400, batch: int = 32) -> None:
    """Teach a UNet to find the noise in latents, of pictures alone: what to look for in a text is learned with the text.

    Args:
        unet: diffusers' UNet2DConditionModel.
        latents: (N, C, H, W), scaled.
        last_step: of the schedule, from none on.
        steps: of training.
        batch: images of a step.
    """
    shares = diffusion.kept(scheduler_config())
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    nothing = torch.zeros(batch, 1, CONTEXT_WIDTH)
    for _ in range(steps):
        given = latents[torch.randint(0, len(latents), (batch,))]
        noise, places = diffusion.draw(given, last_step + 1)
        found = unet(diffusion.noised(given, noise, shares[places]), places, nothing).sample
        (found - noise).square().mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


@torch.no_grad()
def latents_of(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) that an AutoencoderKL makes of pixels (N, 3, height, width), scaled."""
    made = [vae.encode(some).latent_dist.mean for some in pixels.split(100)]
    return torch.cat(made) / LATENT_DEVIATION


def scenes(count: int, side: int) -> torch.Tensor:
    """(N, 3, side, side) pictures of training scenes; none that the T5 is taught with."""
    first = 10_000_000
    pictures = (corpus.make("captions", first + number).images[0] for number in range(count))
    return torch.stack([in_square(opened(picture, MAX_PIXELS), side) for picture in pictures])


def teach_first(model: Any, processor: T5DiffusionProcessor) -> None:
    """Teach a model's VAE and UNet by pictures; of the VAE the half that makes latents is kept."""
    pixels = scenes(2000, SETTINGS["image_size"])
    vae = teach_to_paint(pixels)
    model.encoder.diffusion.vae.load_state_dict(vae.state_dict(), strict=False)
    teach_to_clean(model.encoder.diffusion.unet, latents_of(vae, pixels), model.config.setting("first_step"))


MADE = (make_model, make_processor)
