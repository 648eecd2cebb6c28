"""An image's latents, refined by a UNet that looks at the text: DPMM-CoT (arXiv 2312.08762).

The paper's code was never published. From the paper: a VAE makes latents, noise is added, a UNet whose cross-attention looks
at the encoded text predicts it, the refined latents are fused with the text; the scale factor; zeros where there is no
image. Ours, for want of its word: latents are the mean of the VAE's distribution; one random step a row; the refined latents
of training are the estimate that follows from one prediction, with its gradient; at inference a few steps of DDIM
(arXiv 2010.02502, eta 0) from a step that is a setting, with noise that follows from the image.

Shapes: B rows, C channels, H and W sides of the latents, P patches.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lora_cot.errors import BackboneError, Problem

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(noised latents (B, C, H, W), steps (B,)) to the noise in them."""


def library() -> Any:
    """The package diffusers.

    Raises:
        BackboneError: it is not installed.
    """
    try:
        import diffusers
    except ImportError:
        what, remedy = "diffusion features need the package diffusers", "pip install 'lora_cot[diffusion]'"
        raise BackboneError(Problem("model.vision_features", what, remedy)) from None
    return diffusers


@functools.cache
def _kept(scheduler: str) -> torch.Tensor:
    values = json.loads(scheduler)
    if values.get("prediction_type", "epsilon") != "epsilon":
        what = f"its UNet predicts {values['prediction_type']}, and only the noise itself (epsilon) is known here"
        raise BackboneError(Problem("model.diffusion.checkpoint", what, "name a checkpoint like Stable Diffusion 1.x"))
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    with torch.device("cpu"), torch.inference_mode(False):  # wherever the model is made or run
        made = library().DDIMScheduler(**{name: values[name] for name in names if name in values})
    return made.alphas_cumprod


def kept(scheduler: Mapping[str, Any]) -> torch.Tensor:
    """(S,) ᾱ of each of a scheduler's steps: the share of the latents' variance that noise has left over.

    Raises:
        BackboneError: its UNet predicts something else than the noise.
    """
    return _kept(json.dumps(dict(scheduler), sort_keys=True))


def _wide(shares: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return shares.to(like.device, torch.float32)[:, None, None, None]


def noised(latents: torch.Tensor, noise: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """√ᾱ · latents + √(1 − ᾱ) · noise, each (B, C, H, W), ᾱ (B,); in float32."""
    share = _wide(shares, latents)
    return share.sqrt() * latents.float() + (1 - share).sqrt() * noise.float()


def estimated(latents: torch.Tensor, noise: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """The latents without their noise: the inverse of `noised`."""
    share = _wide(shares, latents)
    return (latents.float() - (1 - share).sqrt() * noise.float()) / share.sqrt()


def draw(latents: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(noise like the latents, a step (B,) on the CPU), both at random."""
    return torch.randn_like(latents, dtype=torch.float32), torch.randint(steps, (len(latents),), device="cpu")


def own_noise(seeds: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Noise like the latents (B, C, H, W) that follows from each row's seed alone, on every device."""
    shape = like.shape[1:]
    rows = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu") for seed in seeds]
    return torch.stack(rows).to(like.device)


def denoised(
    latents: torch.Tensor, noise: torch.Tensor, shares: torch.Tensor, predict: Predict, first: int, steps: int
) -> torch.Tensor:
    """(B, C, H, W) of latents that are noised up to a step and cleaned again by DDIM; as they are if `steps` is 0.

    Args:
        latents: (B, C, H, W), scaled.
        noise: like them.
        shares: (S,) see `kept`.
        predict: the UNet.
        first: the step that the noise belongs to, where cleaning begins.
        steps: predictions, at even distances from `first` down.
    """
    count, clean = len(latents), latents.float()
    for number in range(steps):
        place = round(first * (steps - number) / steps)
        current = noised(clean, noise, shares[[place]].expand(count))
        noise = predict(current, torch.full((count,), place))
        clean = estimated(current, noise, shares[[place]].expand(count))
    return clean


def in_patches(latents: torch.Tensor, side: int) -> torch.Tensor:
    """(B, P, C · side²) of (B, C, H, W), row by row."""
    return nn.functional.pixel_unshuffle(latents, side).flatten(2).transpose(1, 2)


class LatentEncoder(nn.Module):
    """The half of an AutoencoderKL that makes latents; nothing here paints images."""

    def __init__(self, config: Mapping[str, Any]):
        """
        Args:
            config: of diffusers' AutoencoderKL.
        """
        super().__init__()
        whole = library().AutoencoderKL.from_config(dict(config))
        self.encoder, self.quant_conv = whole.encoder, whole.quant_conv

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W): the mean of each image's latents, not scaled yet.

        Args:
            pixels: (B, 3, 8 · H, 8 · W) from -1 to 1, where the VAE makes eighths.
        """
        found = self.encoder(pixels.to(floats_of(self.encoder.conv_in)))
        found = found if self.quant_conv is None else self.quant_conv(found)
        return found.chunk(2, dim=1)[0]


class Diffusion(nn.Module):
    """A VAE and a UNet, as they lie in the model."""

    def __init__(self, vae: Mapping[str, Any], unet: Mapping[str, Any]):
        """
        Args:
            vae: configuration of diffusers' AutoencoderKL.
            unet: of diffusers' UNet2DConditionModel.
        """
        super().__init__()
        self.vae = LatentEncoder(vae)
        self.unet = library().UNet2DConditionModel.from_config(dict(unet))

    def predict(
        self, latents: torch.Tensor, steps: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The noise in latents (B, C, H, W), in float32.

        Args:
            latents: noised.
            steps: (B,) of the schedule.
            context: (B, T, D) that the UNet looks at, of the width of its cross-attention.
            mask: (B, T) 1 where there is context; None is all of it.
        """
        dtype, device = floats_of(self.unet.conv_in), latents.device  # of the copy that PEFT trains, where there are two
        given = {"encoder_hidden_states": context.to(dtype), "encoder_attention_mask": mask}
        return self.unet(latents.to(dtype), steps.to(device), **given, return_dict=False)[0].float()


def floats_of(module: nn.Module) -> torch.dtype:
    """The precision of a convolution, which is never quantised."""
    return next(module.parameters()).dtype
