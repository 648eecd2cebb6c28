"""Four-bit loading: a recipe's section to BitsAndBytesConfig, and proof that it did what it says."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lora_cot.backbones.base import Family, part_of
from lora_cot.errors import BackboneError, Problem, RecipeError
from lora_cot.recipe.schema import QuantizationSection


def bits_and_bytes(section: QuantizationSection, family: Family, dtype: torch.dtype) -> Any:
    """The BitsAndBytesConfig of a recipe.

    `llm_int8_skip_modules` replaces transformers' own list, so the head is named here too, and each by its full path:
    a bare leaf name such as `vision_tower` matches nothing in transformers 5.

    Args:
        section: the recipe's keys.
        family: its parts' paths are what is skipped.
        dtype: precision of the rest; the default compute precision.
    """
    from transformers import BitsAndBytesConfig

    keys = section.library
    keys.setdefault("bnb_4bit_compute_dtype", dtype)
    if family.is_encoder_decoder:  # T5 casts what its `wo` is given to the type that the weight is stored in
        storage = _dtype(keys.setdefault("bnb_4bit_quant_storage", dtype))
        if not storage.is_floating_point:
            what = f"{str(storage).removeprefix('torch.')}: T5 rounds to it what its feed-forward layers compute"
            raise RecipeError(Problem("quantization.bnb_4bit_quant_storage", what, "leave it out, or set it to model.dtype"))
    for key in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
        if family.no_fp16 and _dtype(keys.get(key)) == torch.float16:
            what = f"a {family.name} model cannot be computed in float16: {family.no_fp16}"
            raise RecipeError(Problem(f"quantization.{key}", what, "set it to bfloat16 or float32, or leave it out"))
    try:
        return BitsAndBytesConfig(llm_int8_skip_modules=_paths(section, family), **keys)
    except (ValueError, TypeError, AttributeError) as error:
        raise RecipeError(Problem("quantization", " ".join(str(error).split()))) from None


def _dtype(value: Any) -> torch.dtype:
    return value if isinstance(value, torch.dtype) else getattr(torch, str(value), torch.uint8)


def _paths(section: QuantizationSection, family: Family) -> list[str]:
    """Paths of the parts that keep full precision; those that can be new to a base always do."""
    kept = {*section.skip_parts, *family.never_quantized}
    return [path for part, path in family.parts.items() if part in kept]


def is_quantized(module: nn.Module) -> bool:
    """Whether a layer's weight is kept in 4 or 8 bits."""
    return type(module).__module__.startswith("bitsandbytes") and isinstance(module, nn.Linear)


def quantize_layers(model: nn.Module, family: Family, section: QuantizationSection, dtype: torch.dtype) -> Any:
    """The BitsAndBytesConfig by which layers of a model without weights were exchanged, as loading a base exchanges them.

    Args:
        model: the base's classes on the meta device.
        family: of the base.
        section: the recipe's keys.
        dtype: precision of the rest.
    """
    from transformers.integrations import replace_with_bnb_linear

    config: Any = bits_and_bytes(section, family, dtype)
    kept = [*config.llm_int8_skip_modules, *(getattr(model, "_keep_in_fp32_modules", None) or ())]
    replace_with_bnb_linear(model, kept, config)
    return config


def quantized_layers(model: nn.Module) -> frozenset[str]:
    """Paths of the layers whose weights are kept in 4 or 8 bits."""
    return frozenset(name for name, module in model.named_modules() if is_quantized(module))


def quantized_parts(model: nn.Module, family: Family) -> dict[str, int]:
    """Number of quantised layers by part."""
    counts = dict.fromkeys(family.parts, 0)
    for name, module in model.named_modules():
        part = part_of(family, name)
        if part is not None and is_quantized(module):
            counts[part] += 1
    return counts


def keep_differentiable(model: nn.Module) -> None:
    """Keep 4-bit weights on a CPU in the form that gradients pass through.

    The first forward in eval mode on a CPU with AVX-512 repacks bitsandbytes' weights for a kernel that rounds to
    bfloat16 and has no backward: a model that answered one question before training then trains on almost no gradient,
    without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def check_quantized(model: nn.Module, family: Family, section: QuantizationSection | None) -> None:
    """Raise if a part that should not be is quantised, or if none is.

    Raises:
        BackboneError: a skipped part was quantised, or nothing was; or the checkpoint itself has a quantised head.
    """
    counts = quantized_parts(model, family)
    if counts["lm_head"]:
        what = "lm_head is quantised, and losses are computed from its weight"
        remedy = "name it in quantization.skip_parts; of a checkpoint that is saved quantised, take the original"
        raise BackboneError(Problem("lm_head", what, remedy))
    if section is None:
        return
    wrong = [part for part in section.skip_parts if counts.get(part)]
    if wrong:
        remedy = "leave it out of them, or take a checkpoint that is not saved quantised"
        what = "was quantised all the same"
        raise BackboneError([Problem("quantization.skip_parts", f"{part} {what}", remedy) for part in wrong])
    if not any(counts.values()):
        raise BackboneError(Problem("quantization", "no layer was quantised", "set load_in_4bit: true, or drop the section"))
