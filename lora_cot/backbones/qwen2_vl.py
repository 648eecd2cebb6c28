"""Qwen2-VL and Qwen2.5-VL: an encoder for images of any size, a merger of 2×2 patches, and a Qwen2 with M-RoPE.

Traps:
- Every image token has a position in time, height and width, and the text goes on after the largest of them: positions
  are ahead of or behind the count of tokens. The model keeps the last batch's difference in itself
  (`rope_deltas`); here positions are always worked out anew and given to it.
- The model needs to know which tokens are images (`mm_token_type_ids`) wherever it gets an image.
- The processor cannot be made without torchvision, because of its video half: see `processors`.
- The small checkpoints tie lm_head to the embeddings.
- The merger, which is the projector here, lies inside the vision encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_cot.backbones.base import Family, PatchView, Size, text_positions
from lora_cot.backbones.processors import load_without_video
from lora_cot.data.labels import Encoded


def image_inputs(processor: Any, rows: list[Encoded], text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """pixel_values (patches of all images, patch width), image_grid_thw (images, 3) and mm_token_type_ids (B, T)."""
    made = [row.image_inputs for row in rows if row.image_inputs]
    if not made:
        return {}
    inputs = {name: torch.cat([row[name] for row in made]) for name in ("pixel_values", "image_grid_thw")}
    return {**inputs, "mm_token_type_ids": (text["input_ids"] == processor.image_token_id).int()}


def image_tokens(processor: Any, sizes: Sequence[Size]) -> list[int]:
    """Tokens that stand for each image of a sample."""
    return processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in sizes])["num_image_tokens"]


def positions(model: Any, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, B, T) positions in time, height and width, and (B,) how far the text after the prompt is ahead of its count."""
    if "image_grid_thw" not in inputs:
        return text_positions(model, inputs)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    found, ahead = model.model.get_rope_index(**{name: inputs[name] for name in names})
    return found, ahead.flatten()


def _grids(processor: Any, prompt: Encoded) -> list[tuple[int, int]]:
    """Rows and columns after the merger."""
    size = processor.image_processor.merge_size
    grids = prompt.image_inputs["image_grid_thw"].tolist() if prompt.image_inputs else []
    return [(rows // size, columns // size) for _, rows, columns in grids]


def _marks(processor: Any) -> tuple[list[int], int]:
    """The tokens that stand around an image."""
    start, end = processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    return [start], end


def _patch_positions(begin: int, places: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, int]:
    """M-RoPE at the patches' own coordinates, as if the whole image began here; text goes on after the largest of them."""
    rows, columns = (torch.tensor(axis) + begin for axis in zip(*places, strict=True))
    found = torch.stack([torch.full_like(rows, begin), rows, columns])
    return found, int(found.max()) + 1


def patch_view(model: Any) -> PatchView:
    """Patches after the merger, each of 2 by 2 of the encoder's."""
    return PatchView(_grids, _marks, _patch_positions, shown=16, released_cap=3, released_from_start=False)


QWEN2_VL = Family(
    name="qwen2_vl",
    model_types=("qwen2_vl", "qwen2_5_vl"),
    parts={
        "vision_encoder": "model.visual",
        "projector": "model.visual.merger",
        "language_model": "model.language_model",
        "lm_head": "lm_head",
    },
    image_inputs=image_inputs,
    image_tokens=image_tokens,
    no_fp16="its activations exceed what float16 can hold, and its outputs become NaN",
    load_processor=load_without_video,
    positions=positions,
    patch_view=patch_view,
)
