"""Tiny Qwen2-VL and Qwen2.5-VL: images of any size, one merged 28-pixel patch for each cell of a 56-pixel scene."""

from __future__ import annotations

from typing import Any, cast

from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from lora_cot.backbones.mini.text import text_sizes
from lora_cot.backbones.processors import STILL

MAX_PIXELS = 28 * 28 * 64

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SPECIAL_TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")


def make_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> Any:
    """At most 64 image tokens."""
    return STILL["Qwen2VLProcessor"](_image_processor(), tokenizer, chat_template=chat_template)


def make_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> Qwen2VLForConditionalGeneration:
    """Qwen2-VL, random."""
    vision = {"embed_dim": width, "hidden_size": width, "depth": 2, "num_heads": width // 64, "mlp_ratio": 2}
    config = Qwen2VLConfig(vision_config=vision, text_config=_text(tokenizer, width, layers), **_joint(tokenizer))
    return Qwen2VLForConditionalGeneration(config)


def make_2_5_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> Any:
    """The same, for Qwen2.5-VL."""
    return STILL["Qwen2_5_VLProcessor"](_image_processor(), tokenizer, chat_template=chat_template)


def make_2_5_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL, random: window attention in the vision encoder."""
    vision = {
        "hidden_size": width,
        "out_hidden_size": width,
        "intermediate_size": 2 * width,
        "depth": 2,
        "num_heads": width // 64,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=_text(tokenizer, width, layers), **_joint(tokenizer))
    return Qwen2_5_VLForConditionalGeneration(config)


def _image_processor() -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=MAX_PIXELS)


def _joint(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = ("vision_start_token_id", "image_token_id", "vision_end_token_id", "video_token_id")
    ids = (cast(int, tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS)
    return {**dict(zip(names, ids, strict=True)), "tie_word_embeddings": False}


def _text(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [16, 8, 8]}
    return {**text_sizes(tokenizer, width, layers), "rope_parameters": rope}
