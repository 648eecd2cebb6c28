"""Llama-3.2-Vision (Mllama): a tiling vision encoder that the language model looks at through cross-attention layers.

Traps:
- An image is one token in the text; its tiles, always padded to four, are the keys and values of the cross-attention
  layers. Those do not grow with the text and must never be cropped.
- transformers lets a token that may look at no image add the mean of all image values to itself (the mask is applied
  after the MLP, but not to the attention's residual). A row with no image, or fewer images, beside one with more would
  get the values of the blank images that it is padded with: such rows never share a batch here. Without any image in a
  batch the cross-attention layers are skipped, as they should be.
- The embedding has eight rows more than lm_head: the image token can be read but never written.
- vLLM no longer serves this family, and takes no adapter for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_cot.backbones.base import Family, Size
from lora_cot.data.labels import Encoded


def image_inputs(processor: Any, rows: list[Encoded], text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """pixel_values (B, images, 4 tiles, 3, H, W), aspect_ratio_ids (B, images), aspect_ratio_mask (B, images, 4) and
    cross_attention_mask (B, T, images, 4): which tiles a token may look at.
    """
    if len({row.images for row in rows}) > 1:
        raise ValueError("rows with different numbers of images must not share a batch: group them by Family.batch_key")
    if not rows[0].image_inputs:
        return {}
    names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    inputs = {name: torch.cat([row.image_inputs[name] for row in rows]) for name in names}
    tiles = inputs["aspect_ratio_mask"].bool()
    # The processor's own rule for images that stand together, as ours do: each is seen from its token on.
    seen = (text["input_ids"] == processor.image_token_id).cumsum(-1)[..., None] > torch.arange(tiles.shape[1])
    inputs["cross_attention_mask"] = (seen[..., None] & tiles[:, None]).long()
    return inputs


def image_tokens(processor: Any, sizes: Sequence[Size]) -> list[int]:
    """One token for each image, whatever its size."""
    return [1] * len(sizes)


def still_layers(model: Any) -> frozenset[int]:
    """The cross-attention layers."""
    return frozenset(model.config.text_config.cross_attention_layers)


def held_inputs(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the last token of a prompt may look at, every later one may too."""
    return {"cross_attention_mask": inputs["cross_attention_mask"][:, -1:]} if "cross_attention_mask" in inputs else {}


MLLAMA = Family(
    name="mllama",
    model_types=("mllama",),
    parts={
        "vision_encoder": "model.vision_model",
        "projector": "model.multi_modal_projector",
        "language_model": "model.language_model",
        "lm_head": "lm_head",
    },
    image_inputs=image_inputs,
    image_tokens=image_tokens,
    mixes_image_counts=False,
    still_layers=still_layers,
    held_inputs=held_inputs,
)
