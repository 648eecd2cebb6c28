"""A recipe's model without weights: its own classes on the meta device, quantised and with adapters as training has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from lora_cot.adapters.lora import attach
from lora_cot.backbones import Backbone, Family
from lora_cot.backbones.loading import base_of, family_of, resolve_base
from lora_cot.backbones.quantization import is_quantized, quantize_layers
from lora_cot.checkpoints.layout import CONFIG
from lora_cot.errors import BackboneError, Problem
from lora_cot.recipe import Recipe
from lora_cot.recipe.schema import QuantizationSection

PUBLISHED = Path(__file__).parent / "published"
"""Configurations of published bases, a folder each, named as on the hub; their tokenizers know the special tokens alone."""


def published(base: str) -> Path | None:
    """The configuration of a hub id that comes with this package."""
    folder = PUBLISHED / base.rsplit("/", 1)[-1].lower()
    return folder if (folder / CONFIG).is_file() else None


def configuration(recipe: Recipe) -> str:
    """Where a recipe's base has its configuration: its own folder, one that comes with this package, or the hub.

    Raises:
        BackboneError: no miniature of that name.
    """
    base = recipe.model.base
    found = base if Path(base).is_dir() else str(published(base) or resolve_base(base, weights=False))
    return base_of(recipe.model.model_copy(update={"base": found}), weights=False)


def outline(recipe: Recipe, base: str, dtype: torch.dtype, compute: torch.dtype) -> Backbone:
    """The model that a recipe trains, on the meta device.

    Args:
        recipe: its sections model, quantization and lora.
        base: where its configuration is.
        dtype: precision of what is not quantised.
        compute: precision in which adapters are computed: under autocast another one than their own.

    Raises:
        BackboneError, AdapterError: as in training.
    """
    import transformers

    section = recipe.model
    family = family_of(base, section.revision)
    try:
        config = family.load_config(base, section)
        processor = family.load_processor(base, section)
    except (OSError, ValueError) as error:
        what = f"its configuration or its processor cannot be read: {' '.join(str(error).split())[:200]}"
        raise BackboneError(
            Problem(f"model.base {recipe.model.base}", what, "name a folder or hub id that holds both")
        ) from None
    config._attn_implementation = "eager" if recipe.model.attn_implementation == "eager" else "sdpa"
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    for module in family.new_modules(model).values():
        module.float()
    if recipe.quantization is not None:
        quantize(model, family, recipe.quantization, dtype)
    plain = recipe.lora.model_copy(update={"init_lora_weights": True})  # what it begins with takes no memory
    with torch.device("meta"):
        backbone = attach(Backbone(family, model, processor, base, section.revision), plain)
    for parameter in backbone.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(compute)
    return backbone


def quantize(model: nn.Module, family: Family, section: QuantizationSection, dtype: torch.dtype) -> None:
    """Replace layers as transformers does when it loads them, and pack their weights."""
    from bitsandbytes import functional

    config = quantize_layers(model, family, section, dtype)
    # bitsandbytes keeps the first code book it makes, for whatever is quantised later: one without values breaks that.
    with mock.patch.dict(functional.name2qmap):
        for layer in filter(is_quantized, model.modules()):
            _pack(layer, config, dtype)


def _pack(layer: Any, config: Any, dtype: torch.dtype) -> None:
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn import Int8Params, Params4bit

    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.to(dtype), requires_grad=False)
    shape = layer.out_features, layer.in_features
    if not config.load_in_4bit:
        packed, scales = torch.empty(shape, dtype=torch.int8, device="meta"), torch.empty(shape[0], device="meta")
        layer.weight = Int8Params(packed, requires_grad=False, CB=packed, SCB=scales)
        return
    kind, nested = config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant
    weight = torch.empty(shape, dtype=dtype, device="meta")
    storage = config.bnb_4bit_quant_storage
    packed, state = quantize_4bit(weight, quant_type=kind, compress_statistics=nested, quant_storage=storage)
    options = {"quant_state": state, "quant_type": kind, "bnb_quantized": True, "module": layer}
    layer.weight = Params4bit(packed, requires_grad=False, **options)


def weight_bytes(layer: nn.Module, name: str, parameter: torch.Tensor) -> int:
    """Bytes of a layer's parameter, with what its quantisation keeps beside it."""
    beside: list[torch.Tensor] = []
    if is_quantized(layer) and name == "weight":
        state = getattr(parameter, "quant_state", None)
        beside = [parameter.SCB] if state is None else [state.absmax]  # type: ignore[attr-defined]
        beside += [state.state2.absmax] if state is not None and state.nested else []
    return sum(tensor.numel() * tensor.element_size() for tensor in (parameter, *beside))


def largest_block(model: nn.Module) -> int:
    """Bytes of the largest of the layers that are alike."""
    blocks = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1].isdigit()]
    return max((sum(p.numel() * p.element_size() for p in block.parameters()) for block in blocks), default=0)
