"""Tiny LLaVAs: 1.5 with one 28-pixel patch for each cell of a scene, and NeXT and OneVision with their tiles."""

from __future__ import annotations

from typing import Any, cast

from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from lora_cot.backbones.mini.text import text_sizes
from lora_cot.backbones.processors import STILL

IMAGE_SIZE, PATCH_SIZE = 56, 28
PINPOINTS = [[IMAGE_SIZE, 2 * IMAGE_SIZE], [2 * IMAGE_SIZE, IMAGE_SIZE], [2 * IMAGE_SIZE, 2 * IMAGE_SIZE]]
"""Shapes that NeXT and OneVision cut an image into: two or four tiles, beside the whole image."""

CLIP: dict[str, Any] = {
    "patch_size": PATCH_SIZE,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
"""What a processor must know of the tower to count an image's tokens."""

IMAGE, SPECIAL_TOKENS = "<image>", ("<image>",)


def make_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> LlavaProcessor:
    """Images of any shape become 56×56, four patches."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessor(do_center_crop=False, size=size, crop_size=size)
    return LlavaProcessor(image_processor, tokenizer, chat_template=chat_template, **CLIP)


def make_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> LlavaForConditionalGeneration:
    """LLaVA-1.5, random."""
    config = LlavaConfig(
        vision_config=_clip(width),
        text_config=LlamaConfig(**text_sizes(tokenizer, width, layers)),
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        **_joint(tokenizer),
    )
    return LlavaForConditionalGeneration(config)


def make_next_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> LlavaNextProcessor:
    """LLaVA-NeXT's: the whole image, and tiles of it by its shape."""
    size = {"shortest_edge": IMAGE_SIZE}
    image_processor = LlavaNextImageProcessorPil(
        size=size, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_grid_pinpoints=PINPOINTS
    )
    return LlavaNextProcessor(image_processor, tokenizer, chat_template=chat_template, **CLIP)


def make_next_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> LlavaNextForConditionalGeneration:
    """LLaVA-NeXT, random."""
    config = LlavaNextConfig(
        vision_config=_clip(width),
        text_config=LlamaConfig(**text_sizes(tokenizer, width, layers)),
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        **_joint(tokenizer),
    )
    return LlavaNextForConditionalGeneration(config)


def make_onevision_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> Any:
    """LLaVA-OneVision's, without its video half."""
    image_processor = LlavaOnevisionImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_grid_pinpoints=PINPOINTS
    )
    return STILL["LlavaOnevisionProcessor"](
        image_processor,
        tokenizer,
        num_image_tokens=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_select_strategy="full",
        chat_template=chat_template,
    )


def make_onevision_model(
    tokenizer: PreTrainedTokenizerFast, width: int, layers: int
) -> LlavaOnevisionForConditionalGeneration:
    """LLaVA-OneVision, random: a SigLIP tower and a Qwen2."""
    vision = SiglipVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        num_hidden_layers=2,
        intermediate_size=2 * width,
        hidden_size=width,
        num_attention_heads=width // 64,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**text_sizes(tokenizer, width, layers)),
        image_grid_pinpoints=PINPOINTS,
        video_token_index=tokenizer.pad_token_id,
        vision_feature_select_strategy="full",
        **_joint(tokenizer),
    )
    return LlavaOnevisionForConditionalGeneration(config)


def _joint(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "image_token_index": cast(int, tokenizer.convert_tokens_to_ids(IMAGE)),
        "vision_feature_layer": -1,
        "tie_word_embeddings": False,
    }


def _clip(width: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        num_hidden_layers=2,
        intermediate_size=2 * width,
        hidden_size=width,
        num_attention_heads=width // 64,
    )
