"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision: a vision tower, a two-layer projector and a language model.

Traps:
- In transformers 5 the tower is `model.vision_tower`, so a bare `vision_tower` matches nothing.
- The chat template of LLaVA-1.5's published checkpoints writes no end token after an answer.
- The last layer of LLaVA-1.5's and NeXT's tower is not used: an adapter there would be dead.
- NeXT and OneVision cut an image into as many tiles as its shape asks for: rows are padded to the most tiles, and the
  model takes out the real ones by `image_sizes`.
- OneVision shows one image at several resolutions, but each of several images at one: the number of tokens of an image
  depends on how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lora_cot.backbones.base import Family, PatchView, Size, patches_in_line
from lora_cot.backbones.processors import load_without_video
from lora_cot.data.labels import Encoded


def image_inputs(processor: Any, rows: list[Encoded], text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the batch's images, in order: pixel_values (images, 3, H, W), or (images, tiles, 3, H, W) with image_sizes."""
    made = [row.image_inputs for row in rows if row.image_inputs]
    if not made:
        return {}
    pixels = [inputs["pixel_values"] for inputs in made]
    tiles = max(len(image) for images in pixels for image in images)
    inputs = {"pixel_values": torch.cat([_pad_tiles(images, tiles) if images.dim() == 5 else images for images in pixels])}
    for name in ("image_sizes", "batch_num_images"):
        if name in made[0]:
            inputs[name] = torch.cat([torch.as_tensor(row[name]) for row in made])
    return inputs


def _pad_tiles(images: torch.Tensor, tiles: int) -> torch.Tensor:
    padded = images.new_zeros((len(images), tiles, *images.shape[2:]))
    padded[:, : images.shape[1]] = images
    return padded


def image_tokens(processor: Any, sizes: Sequence[Size]) -> list[int]:
    """Tokens that stand for each image of a sample."""
    if len(sizes) > 1 and hasattr(processor, "vision_aspect_ratio"):  # OneVision
        return [processor.num_image_tokens + 1 - (processor.vision_feature_select_strategy == "default")] * len(sizes)
    return processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in sizes])["num_image_tokens"]


def unused_layers(model: Any) -> str:
    """Layers of the tower above the one whose output is taken (LLaVA-1.5 and NeXT take the last but one)."""
    taken = model.config.vision_feature_layer
    count = model.config.vision_config.num_hidden_layers
    last = max(layer if layer >= 0 else count + 1 + layer for layer in ([taken] if isinstance(taken, int) else taken))
    above = "|".join(str(layer) for layer in range(last, count)) or "(?!)"
    return rf"model\.vision_tower\.(.*\.)?layers\.({above})\..*"


def _grids(processor: Any, prompt: Encoded) -> list[tuple[int, int]]:
    """A square for each image (LLaVA-1.5)."""
    return [(math.isqrt(len(slots)),) * 2 for slots in prompt.image_slots]


def _marks(processor: Any) -> tuple[list[int], int]:
    """A line break after patches, as LLaVA-1.5's template writes one after an image."""
    return [], processor.tokenizer("\n", add_special_tokens=False)["input_ids"][-1]


def patch_view(model: Any) -> PatchView | None:
    """LLaVA-1.5's patches are a grid; NeXT and OneVision have grids of several sizes, and no patch of them is shown again."""
    if model.config.model_type != "llava":
        return None
    # The paper has no LLaVA: a sixteenth of its 576 patches, as its 64 are of Chameleon's 1,024.
    return PatchView(_grids, _marks, patches_in_line, shown=36)


LLAVA = Family(
    name="llava",
    model_types=("llava", "llava_next", "llava_onevision"),
    parts={
        "vision_encoder": "model.vision_tower",
        "projector": "model.multi_modal_projector",
        "language_model": "model.language_model",
        "lm_head": "lm_head",
    },
    image_inputs=image_inputs,
    image_tokens=image_tokens,
    load_processor=load_without_video,
    unused_layers=unused_layers,
    patch_view=patch_view,
)
