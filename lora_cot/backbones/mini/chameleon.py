"""A tiny Chameleon: images of 16 pixels become four tokens of a code book of 64."""

from __future__ import annotations

from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessorPil,
    ChameleonProcessor,
    ChameleonVQVAEConfig,
    PreTrainedTokenizerFast,
)

from lora_cot.backbones.mini.text import text_sizes

IMAGE_SIZE, GRID, CODES = 16, 2, 64

IMAGE, SEPARATOR = "<image>", "<reserved08706>"
CODE_TOKENS = tuple("IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z" for code in range(CODES))
"""transformers reads a code's number from its token's name: a letter for each digit."""
SPECIAL_TOKENS = ("<racm3:break>", "<eoss>", IMAGE, SEPARATOR, *CODE_TOKENS)


def make_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> ChameleonProcessor:
    """Without a chat template, as the published ones are."""
    tokenizer.sep_token = SEPARATOR
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = ChameleonImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=square)
    return ChameleonProcessor(image_processor, tokenizer, image_seq_length=GRID**2)


def make_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> ChameleonForConditionalGeneration:
    """Random, but for the code book: its codes are as far apart as the patches, which else would all be the same one."""
    import torch

    levels = (IMAGE_SIZE // GRID).bit_length()
    vision = ChameleonVQVAEConfig(
        resolution=IMAGE_SIZE,
        base_channels=32,
        channel_multiplier=[1] * levels,
        num_res_blocks=1,
        latent_channels=32,
        embed_dim=16,
        num_embeddings=CODES,
    )
    config = ChameleonConfig(
        vq_config=vision,
        vocabulary_map={token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS},
        **text_sizes(tokenizer, width, layers),
    )
    model = ChameleonForConditionalGeneration(config)
    with torch.no_grad():
        model.model.vqmodel.quantize.embedding.weight.normal_(std=0.01)
    return model
