"""LLaVA-1.5: a CLIP tower, a two-layer projector and a Llama.

Traps: in transformers 5 the tower is `model.vision_tower`, so a bare `vision_tower` matches nothing; the chat template
of the published checkpoints writes no end token after an answer.
"""

from typing import Any

import torch

from lora_cot.backbones.base import Family
from lora_cot.data.labels import Encoded


def image_inputs(processor: Any, rows: list[Encoded], text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """pixel_values (images of the batch, 3, H, W), in order; nothing for a batch without images."""
    pixels = [inputs["pixel_values"] for row in rows for inputs in row.image_inputs]
    return {"pixel_values": torch.cat(pixels)} if pixels else {}


LLAVA = Family(
    name="llava",
    model_types=("llava",),
    parts={
        "vision_encoder": "model.vision_tower",
        "projector": "model.multi_modal_projector",
        "language_model": "model.language_model",
        "lm_head": "lm_head",
    },
    image_inputs=image_inputs,
)
