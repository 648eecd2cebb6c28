"""What cannot go together with DeepSpeed: told before anything is loaded, each with the way that works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lora_cot.backbones import Family
from lora_cot.backbones.loading import base_of, choose_dtype
from lora_cot.errors import BackboneError, Problem, RecipeError
from lora_cot.recipe import Recipe
from lora_cot.recipe.schema import QuantizationSection
from lora_cot.training.sharding import is_wanted, offloads, read_config, stage_of


def deepspeed_keys(recipe: Recipe, family: Family) -> tuple[dict[str, Any], list[Problem]]:
    """The keys of SFTConfig that make a run DeepSpeed's, and what stands against it; none of both for other runs.

    DeepSpeed computes the whole model in one precision, the base's. What is trained has a copy in float32 in the
    optimizer, from stage 1 on, so nothing is lost where that is bfloat16.

    Args:
        recipe: of the run.
        family: of its base.
    """
    if not is_wanted(recipe):
        return {}, []
    try:
        config = read_config(recipe)
        dtype = _dtype(recipe, family)
    except (RecipeError, BackboneError) as error:
        return {"deepspeed": None}, list(error.problems)
    given = recipe.training.library
    accelerator = {**(given.get("accelerator_config") or {}), "use_configured_state": True}
    keys: dict[str, Any] = {"deepspeed": config, "accelerator_config": accelerator}
    problems = [*_refused(recipe, config), *_storage_refused(recipe, dtype)]
    for name, half in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        keys[name] = dtype is half
        if given.get(name) is not None and bool(given[name]) is not keys[name]:
            said = str(dtype).removeprefix("torch.")
            what = f"{str(given[name]).lower()}, where the base is in {said}: DeepSpeed computes all of it in one precision"
            wanted = str(half).removeprefix("torch.") if given[name] else "another precision"
            problems.append(Problem(f"training.{name}", what, f"take it out, or set model.dtype to {wanted}"))
    return keys, problems


def mismatches(arguments: Any) -> list[Problem]:
    """What a configuration of one's own says of sizes that the recipe says differently."""
    config = getattr(arguments, "hf_deepspeed_config", None)
    found = getattr(config, "mismatches", [])
    remedy = "set it to auto there: the recipe is the only source of sizes"
    what = "the configuration and the recipe differ"
    return [Problem("training.deepspeed", f"{what}: {one.lstrip('- ')}", remedy) for one in found]


def stored(recipe: Recipe, family: Family) -> QuantizationSection | None:
    """A recipe's quantisation; under DeepSpeed 4-bit weights are stored as numbers of the base's own type.

    ZeRO splits, gathers and casts numbers of one type: packed bytes of another one are left whole, or cast to nonsense.
    """
    section = recipe.quantization
    if section is None or not is_wanted(recipe) or not section.load_in_4bit or section.library.get(STORAGE) is not None:
        return section
    return section.model_copy(update={STORAGE: str(_dtype(recipe, family)).removeprefix("torch.")})


STORAGE = "bnb_4bit_quant_storage"


def _dtype(recipe: Recipe, family: Family) -> torch.dtype:
    base = base_of(recipe.model, weights=False)
    return choose_dtype(recipe.model.dtype, base, recipe.model.revision, family, recipe.quantization is not None)


def _storage_refused(recipe: Recipe, dtype: torch.dtype) -> list[Problem]:
    section = recipe.quantization
    given = str(section.library.get(STORAGE) or dtype).removeprefix("torch.") if section else None
    if section is None or not section.load_in_4bit or getattr(torch, given or "", None) is dtype:
        return []
    said = str(dtype).removeprefix("torch.")
    what = f"{given}, where the base is in {said}: DeepSpeed shares out and casts numbers of one type"
    return [Problem(f"quantization.{STORAGE}", what, f"leave it out, or set it to {said}")]


def _refused(recipe: Recipe, config: Mapping[str, Any]) -> list[Problem]:
    """The table: where · whether it is so here · what is wrong · the way that works."""
    keys, lora, section = recipe.training.library, recipe.lora, recipe.quantization
    stage, moved = stage_of(config), offloads(config)
    optimizer = str(getattr(keys.get("optim"), "value", keys.get("optim") or "adamw_torch_fused"))
    rows: list[tuple[str, Any, str, str]] = [
        (
            "training.optim",
            moved and any(mark in optimizer for mark in ("paged", "8bit", "bnb", "4bit")),
            f"{optimizer} keeps its states on the GPU, and they are offloaded to the host",
            "set training.optim to adamw_torch, or take a configuration without offload",
        ),
        (
            "quantization.load_in_8bit",
            stage == 3 and section is not None and section.load_in_8bit,
            "ZeRO-3 cannot split bitsandbytes' int8 weights",
            "set load_in_4bit instead, or take ds_configs/zero2.json",
        ),
        (
            "lora.init_lora_weights",
            stage == 3 and lora.rewrites_base,
            f"{lora.init_lora_weights} rewrites the base's weights, and ZeRO-3 keeps them in pieces",
            "set it to true, or take ds_configs/zero2.json",
        ),
        (
            "lora.use_dora",
            stage == 3 and section is not None and lora.library.get("use_dora"),
            "DoRA reads the base's weights when they are quantised and in pieces",
            "drop the section quantization, or take ds_configs/zero2.json",
        ),
        (
            "lora.trainable_token_indices",
            stage == 3 and lora.library.get("trainable_token_indices"),
            "PEFT takes these rows from embeddings that ZeRO-3 keeps in pieces, and not on every device",
            "take it out, or take ds_configs/zero2.json",
        ),
        (
            "training.torch_compile",
            keys.get("torch_compile"),
            "DeepSpeed's hooks and a compiled model have not been tried together",
            "take it out",
        ),
    ]
    return [Problem(where, what, remedy) for where, applies, what, remedy in rows if applies]
