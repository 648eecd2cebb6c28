"""A tiny Llama-3.2-Vision: 56-pixel tiles of four patches, seen through two cross-attention layers."""

from __future__ import annotations

from transformers import (
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessorPil,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from lora_cot.backbones.mini.text import text_sizes

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

    text = text_sizes(tokenizer, width, layers + 2)
    config = MllamaConfig(
        vision_config=MllamaVisionConfig(
            image_size=TILE_SIZE,
            patch_size=PATCH_SIZE,
            num_hidden_layers=2,
            num_global_layers=1,
            attention_heads=width // 64,
            intermediate_layers_indices=[0],
            vision_output_dim=2 * width,
            hidden_size=width,
            intermediate_size=2 * width,
        ),
        text_config=MllamaTextConfig(
            cross_attention_layers=[1, layers],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            **{**text, "vocab_size": len(tokenizer) - 1},
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
