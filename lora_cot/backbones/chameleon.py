"""Chameleon: a VQ-VAE turns an image into 1,024 tokens of the vocabulary, and one transformer reads them as it reads words.

Inference only. The transformer is the whole of `model`; there is no projector, and no language model below it.

Traps:
- Published checkpoints have no chat template, and their processor puts the separator after any text. The released code
  ends a question with it (`chameleon/inference/examples/multimodal_input.py`) and an answer with the end token; so does
  the template here.
- An image is the tokens between two marks, and the marks: the processor makes all of them of one `<image>`.
- transformers gives image tokens the lowest logits there are, so that none is ever drawn. The marks can be.
- The token that a patch becomes is the nearest of a code book: on another device, or in another precision, it may be
  another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lora_cot.backbones.base import Family, PatchView, Size, auto_processor, patches_in_line
from lora_cot.data.labels import Encoded
from lora_cot.recipe.model import ModelSection

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else sep_token }}{% endfor %}"
)
"""For checkpoints that have none."""


def load_processor(base: str, section: ModelSection) -> Any:
    """A base's processor, with a chat template: transformers leaves one that comes along to the tokenizer."""
    processor = auto_processor(base, section)
    processor.chat_template = processor.tokenizer.chat_template or TEMPLATE
    return processor


def image_inputs(processor: Any, rows: list[Encoded], text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """pixel_values (images, 3, H, W)."""
    pixels = [row.image_inputs["pixel_values"] for row in rows if row.image_inputs]
    return {"pixel_values": torch.cat(pixels)} if pixels else {}


def image_tokens(processor: Any, sizes: Sequence[Size]) -> list[int]:
    """As many for any image, with the marks around them."""
    return [processor.image_seq_length + 2] * len(sizes)


def _grids(processor: Any, prompt: Encoded) -> list[tuple[int, int]]:
    """A square for each image."""
    return [(math.isqrt(processor.image_seq_length),) * 2 for _ in prompt.image_slots]


def _marks(processor: Any) -> tuple[list[int], int]:
    """Begin of image, and end of image."""
    return [processor.image_start_token_id], processor.image_end_token_id


def patch_view(model: Any) -> PatchView:
    """Patches are image tokens, between marks as in any image."""
    return PatchView(_grids, _marks, patches_in_line)


CHAMELEON = Family(
    name="chameleon",
    model_types=("chameleon",),
    parts={"vision_encoder": "model.vqmodel", "language_model": "model", "lm_head": "lm_head"},
    image_inputs=image_inputs,
    image_tokens=image_tokens,
    inference_only=True,
    load_processor=load_processor,
    patch_view=patch_view,
)
