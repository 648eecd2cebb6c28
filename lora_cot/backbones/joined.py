"""A plain T5 and a Stable Diffusion checkpoint as one checkpoint, made once and kept where the miniatures are.

With all weights in one folder, loading, quantising, merging and saving need no second way for the UNet's. Of the
AutoencoderKL only the half that makes latents is taken. The fusion is not in it: each run begins its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lora_cot.backbones.cache_root import cache_root
from lora_cot.backbones.diffusion import kept, library
from lora_cot.backbones.hub import checkpoint_file, quietly
from lora_cot.backbones.latents import PREFIX
from lora_cot.backbones.t5_diffusion_model import T5DiffusionConfig
from lora_cot.errors import BackboneError, Problem
from lora_cot.recipe.schema import DiffusionSection, ModelSection

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


def joined(base: str, section: ModelSection, weights: bool) -> Path:
    """Folder of the one checkpoint; made now, if it is nowhere yet.

    Args:
        base: of a plain T5, a folder or hub id.
        section: names the other.
        weights: False: configuration and tokenizer alone, made in no time.

    Raises:
        BackboneError: one of them is missing or of another kind, or diffusers is not installed.
    """
    library()
    diffusion = section.diffusion or DiffusionSection()
    checkpoint, revision = diffusion.checkpoint or DEFAULT, diffusion.revision
    is_known = checkpoint == DEFAULT and not weights
    configs = KNOWN if is_known else {name: _config(checkpoint, revision, path) for name, path in CONFIGS.items()}
    _check(checkpoint, configs)
    files = [] if is_known else [checkpoint_file(KEY, checkpoint, path, revision) for path in CONFIGS.values()]
    files += [checkpoint_file(KEY, checkpoint, path, revision) for path in WEIGHTS] if weights else []
    made_of = [weights, configs, _print(base, section.revision), [_stamp(path) for path in files]]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_root("joined") / key
    if not folder.is_dir():
        _make(folder, base, section.revision, configs, files[-2:] if weights else [])
    return folder


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


def _stamp(path: Path) -> list[Any]:
    """What tells a file from another one by that name; one of the hub lies in the folder of its commit."""
    stat = path.stat()
    return [str(path.absolute()), stat.st_size, stat.st_mtime_ns]


def _print(base: str, revision: str | None) -> Any:
    config = checkpoint_file("model.base", base, "config.json", revision)
    if not Path(base).is_dir():
        return config.parent.name
    return [_stamp(path) for path in sorted(Path(base).iterdir()) if path.is_file()]


def _make(folder: Path, base: str, revision: str | None, configs: Mapping[str, Any], files: list[Path]) -> None:
    """Write all of it; the folder appears whole or not at all."""
    from transformers import AutoTokenizer, T5Config

    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        if files:
            _write_weights(staging, base, revision, *files)
        values, _ = T5Config.get_config_dict(base, revision=revision)
        own = {key: value for key, value in values.items() if key not in ("model_type", "architectures")}
        layout = {f"{name}_config": dict(values) for name, values in configs.items()}
        config: Any = T5DiffusionConfig(**{**own, **layout, "vision_features": "diffusion"})
        config.architectures = ["T5DiffusionForConditionalGeneration"]
        config.save_pretrained(staging)
        AutoTokenizer.from_pretrained(base, revision=revision).save_pretrained(staging)
        staging.chmod(0o755)  # mkdtemp makes it private
        try:
            staging.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process has made it
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_weights(folder: Path, base: str, revision: str | None, vae: Path, unet: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file
    from transformers import T5ForConditionalGeneration

    options: dict[str, Any] = {"revision": revision, "dtype": "auto"}
    with quietly():
        t5: Any = T5ForConditionalGeneration.from_pretrained(base, **options)
        t5.save_pretrained(folder, max_shard_size="1TB")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / "model.safetensors").rename(folder / names[0])
    try:
        other = {f"{UNET_PREFIX}{name}": tensor for name, tensor in load_file(unet).items()}
        encodes = ("encoder.", "quant_conv.")
        other |= {_vae_name(name): tensor for name, tensor in load_file(vae).items() if name.startswith(encodes)}
    except (SafetensorError, OSError) as error:
        what = f"its weights cannot be read: {' '.join(str(error).split())[:200]}"
        raise BackboneError(Problem(f"{KEY} {unet.parent.parent}", what, "download it again")) from None
    save_file(other, folder / names[1], {"format": "pt"})
    held = {names[0]: load_file(folder / names[0]), names[1]: other}
    places = {name: file for file, tensors in held.items() for name in tensors}
    size = sum(_bytes(tensor) for tensors in held.values() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _vae_name(name: str) -> str:
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return f"{PREFIX}{name}"


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
