"""What a VAE is given of an image, and the latents of a frozen one, computed once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from safetensors import safe_open

from lora_cot.backbones.diffusion import LatentEncoder
from lora_cot.backbones.vision_encoder import full_precision
from lora_cot.errors import BackboneError, Problem

PREFIX = "encoder.diffusion.vae."
"""Of the VAE's tensors in a checkpoint."""
VERSION = 1
"""Of how latents are computed here: a change of it makes all that were kept useless."""


def in_square(image: PILImage.Image, side: int) -> torch.Tensor:
    """(3, side, side) from -1 to 1: the whole image, its sides stretched as those of a ViT's are (ours)."""
    values = np.asarray(image.convert("RGB").resize((side, side), PILImage.Resampling.BICUBIC), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1).contiguous()


@dataclass(frozen=True, eq=False)
class FrozenVae:
    """The VAE of a checkpoint that is not loaded; see `vision_encoder.FoundEncoder`."""

    path: str
    """The checkpoint's folder."""
    config: dict[str, Any]
    """Of diffusers' AutoencoderKL."""
    side: int
    """Height and width of the images it is given, in pixels."""
    shape: tuple[int, int, int]
    """(C, H, W) of an image's latents."""
    revision: str | None = None

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Its tensors by their names in it, in order.

        Raises:
            BackboneError: the checkpoint has none.
        """
        count = 0
        for path in sorted(Path(self.path).glob("model*.safetensors")):
            with safe_open(path, "pt") as file:
                held = sorted(file.keys())
                for name in held:
                    if name.startswith(PREFIX):
                        count += 1
                        yield name.removeprefix(PREFIX), file.get_tensor(name)
        if not count:
            what = f"its files hold no tensor {PREFIX}*"
            raise BackboneError(Problem(f"model.base {self.path}", what, "name a checkpoint with diffusion features"))

    def key(self) -> str:
        """Name of its latents: by its weights, wherever they lie, and the size of the images."""
        digest = hashlib.sha256(repr((VERSION, self.side, sorted(self.config.items(), key=str))).encode())
        for name, tensor in self.tensors():
            digest.update(name.encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return f"diffusion-{digest.hexdigest()[:16]}"

    def load(self, device: torch.device) -> LoadedVae:
        """It with its weights, in float32 whatever they were saved in."""
        return LoadedVae(self, device)


class LoadedVae:
    """A frozen VAE; see `vision_encoder.LoadedEncoder`."""

    def __init__(self, vae: FrozenVae, device: torch.device):
        """
        Args:
            vae: which.
            device: where it computes.

        Raises:
            BackboneError: its weights are missing or of another shape.
        """
        self.device, self._side = device, vae.side
        with torch.random.fork_rng(devices=[]):  # it is begun at random first
            model = LatentEncoder(vae.config)
        try:
            model.load_state_dict(dict(vae.tensors()))
        except RuntimeError as error:
            what = f"its VAE cannot be loaded: {' '.join(str(error).split())[:200]}"
            raise BackboneError(Problem(f"model.base {vae.path}", what, "make it anew")) from None
        self._model = model.to(device, torch.float32).eval().requires_grad_(False)

    def pixels(self, image: PILImage.Image) -> torch.Tensor:
        """(3, side, side) of an image."""
        return in_square(image, self._side)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) float16 on the CPU, not scaled: another scale factor needs no others."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), full_precision():
            return self._model(pixels.to(self.device)).to("cpu", torch.float16)
