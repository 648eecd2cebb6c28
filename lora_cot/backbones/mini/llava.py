"""A LLaVA of about two million parameters: one 28-pixel patch for each cell of a scene."""

from __future__ import annotations

from typing import Any, cast

from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

IMAGE_SIZE, PATCH_SIZE = 56, 28


def make_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> LlavaProcessor:
    """Images of any shape become 56×56, four patches."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessor(do_center_crop=False, size=size, crop_size=size)
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )


def make_config(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> LlavaConfig:
    """Widths are multiples of 64, as 4-bit layers on a CPU want them."""
    common: dict[str, Any] = {"hidden_size": width, "num_attention_heads": width // 64}
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, num_hidden_layers=2, intermediate_size=2 * width, **common
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            num_hidden_layers=layers,
            num_key_value_heads=width // 64,
            intermediate_size=2 * width,
            max_position_embeddings=2048,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **common,
        ),
        image_token_index=cast(int, tokenizer.convert_tokens_to_ids("<image>")),
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )


def make_model(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """Random weights in float32."""
    return LlavaForConditionalGeneration(config)
