"""A Stable Diffusion checkpoint as what a T5 is joined with. Of the VAE only the half that makes latents is taken."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lora_cot.backbones.diffusion import kept, library
from lora_cot.backbones.joined import Joining, stamp
from lora_cot.backbones.latents import PREFIX
from lora_cot.backbones.t5_diffusion_model import T5DiffusionConfig
from lora_cot.errors import BackboneError, Problem
from lora_cot.hub import checkpoint_file
from lora_cot.recipe.model import DiffusionSection, ModelSection

KEY = "model.diffusion.checkpoint"
DEFAULT = "CompVis/stable-diffusion-v1-4"
CONFIGS = {"vae": "vae/config.json", "unet": "unet/config.json", "scheduler": "scheduler/scheduler_config.json"}
WEIGHTS = ("vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors")
UNET_PREFIX = "encoder.diffusion.unet."
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Of the VAE's attention, as Stable Diffusion 1.4 was saved."""
KNOWN: dict[str, dict[str, Any]] = {
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 512,
    },
    "unet": {
        "sample_size": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "layers_per_block": 2,
    },
    "scheduler": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000},
}
"""Stable Diffusion 1.4's, so that a run can be planned without the hub."""


def diffusion_joining(base: str, section: ModelSection, weights: bool) -> Joining:
    """VAE, UNet and noise schedule of the checkpoint that a recipe names.

    Args:
        base: of the T5.
        section: names it.
        weights: False: its configuration alone, which is known of Stable Diffusion 1.4.

    Raises:
        BackboneError: it is missing or of another kind, or diffusers is not installed.
    """
    library()
    diffusion = section.diffusion or DiffusionSection()
    checkpoint, revision = diffusion.checkpoint or DEFAULT, diffusion.revision
    is_known = checkpoint == DEFAULT and not weights
    configs = KNOWN if is_known else {name: _config(checkpoint, revision, path) for name, path in CONFIGS.items()}
    _check(checkpoint, configs)
    files = [] if is_known else [checkpoint_file(KEY, checkpoint, path, revision) for path in CONFIGS.values()]
    held = [checkpoint_file(KEY, checkpoint, path, revision) for path in WEIGHTS] if weights else []
    layout = {f"{name}_config": dict(values) for name, values in configs.items()}

    def config(own: dict[str, Any]) -> Any:
        named = {"vision_features": "diffusion", "architectures": ["T5DiffusionForConditionalGeneration"]}
        return T5DiffusionConfig(**{**own, **layout, **named})

    return Joining([configs, [stamp(path) for path in [*files, *held]]], config, functools.partial(_tensors, *held))


def _config(checkpoint: str, revision: str | None, path: str) -> dict[str, Any]:
    values = json.loads(checkpoint_file(KEY, checkpoint, path, revision).read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key not in ("_name_or_path", "_diffusers_version")}


def _check(checkpoint: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """See that a UNet is one that latents and text fit.

    Raises:
        BackboneError: it is not.
    """
    vae, unet = configs["vae"], configs["unet"]
    kept(configs["scheduler"])
    channels = {vae.get("latent_channels", 4), unet.get("in_channels", 4), unet.get("out_channels", 4)}
    if len(channels) > 1 or not isinstance(unet.get("cross_attention_dim", 1280), int) or unet.get("addition_embed_type"):
        what = "its UNet takes other latents than its VAE makes, or more than a text to look at"
        raise BackboneError(Problem(f"{KEY} {checkpoint}", what, "name a checkpoint like Stable Diffusion 1.x"))


def _tensors(vae: Path, unet: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    encodes = ("encoder.", "quant_conv.")
    try:
        found = {f"{UNET_PREFIX}{name}": tensor for name, tensor in load_file(unet).items()}
        return found | {_vae_name(name): tensor for name, tensor in load_file(vae).items() if name.startswith(encodes)}
    except (SafetensorError, OSError) as error:
        what = f"its weights cannot be read: {' '.join(str(error).split())[:200]}"
        raise BackboneError(Problem(f"{KEY} {unet.parent.parent}", what, "download it again")) from None


def _vae_name(name: str) -> str:
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return f"{PREFIX}{name}"
