"""What this project does to attention: candidates share their images, and a token's attention can be watched.

An image does not hide its patches from each other, nor from a later token: the candidates of a question can stand where
attention has the tokens of one text. So no entry of the cache is repeated, and a batch reads it once.

What is watched is computed beside the model's own fast attention, for one token: no map of all tokens to all is made.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lora_cot.engines.cache import OfRows

NAME = "lora_cot"


def share_images(language_model: nn.Module, places: frozenset[int]) -> None:
    """Let the layers at some places take `OfRows`; given tensors, they compute what they always did."""
    for module in _attentions(language_model):
        if module.layer_idx in places:
            _take_over(module)


class Watch:
    """Attention of the last token to all before it, averaged over heads and layers, summed up as it is computed."""

    def __init__(self, layers: Collection[int] | None = None, heads: Collection[int] | None = None):
        """
        Args:
            layers: only these; all if not given.
            heads: of each layer only these; all if not given.
        """
        self.layers, self.heads = layers, heads
        self._total, self._count = torch.zeros(1), 0

    @property
    def mean(self) -> torch.Tensor:
        """(B, T), in float32; each row adds up to 1."""
        return self._total / self._count

    def see(self, module: Any, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> None:
        """One layer: query (B, H, T', D), key (B, H', T, D), mask (B, 1, T', T) of True or of what is added."""
        if self.layers is not None and module.layer_idx not in self.layers:
            return
        batch, heads, length, width = key.shape
        grouped = query[:, :, -1].reshape(batch, heads, -1, width).float()
        scores = grouped @ key.float().transpose(-1, -2) * scaling
        if mask is not None:
            last = mask[:, :, -1:, :length]
            scores = scores.masked_fill(~last, -torch.inf) if last.dtype == torch.bool else scores + last
        weights = scores.softmax(-1).flatten(1, 2)
        weights = weights if self.heads is None else weights[:, sorted(self.heads)]
        self._total = weights.mean(1) + (self._total if self._count else 0.0)
        self._count += 1


@contextmanager
def watched(
    language_model: nn.Module, layers: Collection[int] | None = None, heads: Collection[int] | None = None
) -> Iterator[Watch]:
    """Watch the self-attention of a language model while it runs; nothing of it is left afterwards."""
    watch, modules = Watch(layers, heads), _attentions(language_model)
    before = [module.config for module in modules]
    for module in modules:
        _take_over(module)
        module.watch = watch
    try:
        yield watch
    finally:
        for module, config in zip(modules, before, strict=True):
            module.watch, module.config = None, config


def layers_and_heads(language_model: nn.Module) -> tuple[int, int]:
    """How many layers look at text, and how many heads each has."""
    modules = _attentions(language_model)
    return len(modules), modules[0].config.num_attention_heads


def _attentions(language_model: nn.Module) -> list[Any]:
    modules: Any = language_model.modules()
    return [module for module in modules if hasattr(module, "layer_idx") and hasattr(module, "k_proj")]


def _take_over(module: Any) -> None:
    if module.config._attn_implementation != NAME:
        module.inner_attention = module.config._attn_implementation
        module.config = copy.copy(module.config)  # of this layer alone: what masks are made depends on the model's
        module.config._attn_implementation = NAME
        module.watch = None


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
        if module.watch is not None:
            module.watch.see(module, query, key, attention_mask, kwargs.get("scaling") or query.shape[-1] ** -0.5)
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
