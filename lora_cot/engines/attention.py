"""Attention over images that rows share: one copy of an image's keys and values serves all of its candidates.

An image does not hide its patches from each other, nor from a later token: the candidates of a question can stand where
attention has the tokens of one text. So no entry of the cache is repeated, and a batch reads it once.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lora_cot.engines.cache import OfRows

NAME = "lora_cot_shared_images"


def share_images(language_model: nn.Module, places: frozenset[int]) -> None:
    """Let the layers at some places take `OfRows`; given tensors, they compute what they always did."""
    modules: Any = language_model.modules()
    for module in modules:
        is_attention = getattr(module, "layer_idx", None) in places and hasattr(module, "k_proj")
        if is_attention and module.config._attn_implementation != NAME:
            module.inner_attention = module.config._attn_implementation
            module.config = copy.copy(module.config)  # of these layers alone: the others' masks depend on the name
            module.config._attn_implementation = NAME


def attend(
    module: Any, query: torch.Tensor, key: Any, value: Any, attention_mask: torch.Tensor | None, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An attention function of transformers.

    Args:
        module: the layer's attention.
        query: (B, H, T, D).
        key: (B, H', P, D), or `OfRows`.
        value: the same.
        attention_mask: (B, 1, T, P).
        kwargs: what transformers gives.

    Returns:
        (B, T, H, D), and the weights where nothing was shared.
    """
    eager = sys.modules[type(module).__module__].eager_attention_forward
    inner = ALL_ATTENTION_FUNCTIONS.get_interface(module.inner_attention, eager)
    if not isinstance(key, OfRows):
        return inner(module, query, key, value, attention_mask, **kwargs)
    begin, found = 0, []
    for (keys, count), (values, _) in zip(key.parts, value.parts, strict=True):
        mine = query[begin : begin + count]
        rows, heads, length, width = mine.shape
        folded = mine.transpose(0, 1).reshape(1, heads, rows * length, width)
        mask = None if attention_mask is None else attention_mask[begin : begin + count].reshape(1, 1, rows * length, -1)
        output, _ = inner(module, folded, keys[None], values[None], mask, is_causal=False, **kwargs)
        found.append(output.reshape(rows, length, heads, width))
        begin += count
    return torch.cat(found), None


AttentionInterface.register(NAME, attend)
