"""A tiny Llama-3.2-Vision: 56-pixel tiles of four patches, seen through two cross-attention layers."""

from __future__ import annotations

from typing import Any

from transformers import (
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessorPil,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

TILE_SIZE, PATCH_SIZE = 56, 28

IMAGE, SPECIAL_TOKENS = "<|image|>", ()
"""As in the published tokenizer, the image token comes after the vocabulary, where lm_head has no row."""


def make_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> MllamaProcessor:
    """At most four tiles of 56×56."""
    image_processor = MllamaImageProcessorPil(size={"height": TILE_SIZE, "width": TILE_SIZE}, max_image_tiles=4)
    return MllamaProcessor(image_processor, tokenizer, chat_template=chat_template)


def make_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> MllamaForConditionalGeneration:
    """Random, but for what training from nothing is slow to find.

    The gates begin open, and the patches' positions, which the text has no other way to tell, as large as what is in them.
    """
    import torch

    heads: dict[str, Any] = {"hidden_size": width, "intermediate_size": 2 * width}
    config = MllamaConfig(
        vision_config=MllamaVisionConfig(
            image_size=TILE_SIZE,
            patch_size=PATCH_SIZE,
            num_hidden_layers=2,
            num_global_layers=1,
            attention_heads=width // 64,
            intermediate_layers_indices=[0],
            vision_output_dim=2 * width,
            **heads,
        ),
        text_config=MllamaTextConfig(
            vocab_size=len(tokenizer) - 1,
            num_hidden_layers=layers + 2,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            cross_attention_layers=[1, layers],
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **heads,
        ),
        image_token_index=len(tokenizer) - 1,
    )
    model = MllamaForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_gate") or name.endswith(".gate"):
                parameter.fill_(0.5)
            if name.endswith("gated_positional_embedding.embedding"):
                parameter.normal_(std=1.0)
    return model
