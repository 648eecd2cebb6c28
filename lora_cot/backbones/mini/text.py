"""What the language models of all tiny bases have in common."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast


def text_sizes(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> dict[str, Any]:
    """Keys of a text configuration. Widths are multiples of 64, as 4-bit layers on a CPU want them."""
    return {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
