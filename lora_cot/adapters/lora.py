"""LoRA by part: the recipe names parts of the model, never patterns that may match more than was meant.

`target_modules=["q_proj", "v_proj"]` given straight to PEFT also adapts the vision tower of LLaVA and Mllama. Here the
full path of every layer that gets an adapter is worked out first, counted, and reported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_cot.backbones import Backbone, Family, part_of
from lora_cot.backbones.quantization import is_quantized
from lora_cot.backbones.zero import size
from lora_cot.errors import AdapterError, Problem, nearest
from lora_cot.recipe.schema import LoraSection

NOT_CONVERTED = ("use_dora", "modules_to_save", "trainable_token_indices")
"""What PEFT loses when it turns an adapter whose beginning rewrote the base into plain LoRA."""


@dataclass(frozen=True)
class PartReport:
    """What a part of the model is made of, for the table at the start of a run."""

    part: str
    adapted: int
    """Layers with an adapter."""
    trained: int
    """Parameters that are trained."""
    parameters: int
    """Parameters of the part, adapters left out. Quantised ones are counted in full."""
    precision: str
    """Types of its weights: nf4 (4-bit), bfloat16, …"""


def target_paths(backbone: Backbone, section: LoraSection) -> list[str]:
    """Full paths of the layers that get an adapter.

    Raises:
        AdapterError: a part or a leaf name matches no linear layer.
    """
    linear: dict[str, list[str]] = {part: [] for part in section.parts}
    unused = re.compile(backbone.family.unused_layers(backbone.base_model))
    for name, module in backbone.base_model.named_modules():
        part = part_of(backbone.family, name)
        if part in linear and isinstance(module, nn.Linear) and not unused.fullmatch(name):
            linear[part].append(name)
    leaves = {name.rsplit(".", 1)[-1] for names in linear.values() for name in names}
    wanted = leaves if section.target_modules is None else set(section.target_modules)
    found = {part: [name for name in names if name.rsplit(".", 1)[-1] in wanted] for part, names in linear.items()}
    problems = [
        Problem("lora.target_modules", f"no linear layer of {', '.join(linear)} is called '{name}'", nearest(name, leaves))
        for name in sorted(wanted - leaves)
    ]
    problems += [
        Problem("lora.parts", f"{part} has no linear layer that is adapted", "name one in target_modules, or drop the part")
        for part, names in found.items()
        if not names
    ]
    if problems:
        raise AdapterError(problems)
    return [name for names in found.values() for name in names]


def attach(backbone: Backbone, section: LoraSection) -> Backbone:
    """The backbone with new adapters; only they, and what `modules_to_save` and `trainable_token_indices` name, are trained.

    Raises:
        AdapterError: see `target_paths`; or what the section asks for cannot be done on this base.
    """
    from peft import LoraConfig, get_peft_model

    _check_possible(backbone, section)
    keys = {**section.library, **_patterns(backbone.family, section), **_in_full(backbone, section)}
    backbone.model.requires_grad_(False)
    kind = "SEQ_2_SEQ_LM" if backbone.family.is_encoder_decoder else "CAUSAL_LM"
    try:
        config = LoraConfig(target_modules=target_paths(backbone, section), task_type=kind, **keys)
        model = get_peft_model(backbone.model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise AdapterError(Problem("lora", " ".join(str(error).split()))) from None
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.float16:
            parameter.data = parameter.data.float()  # gradients of float16 parameters cannot be unscaled
    return replace(backbone, model=model)


def _in_full(backbone: Backbone, section: LoraSection) -> dict[str, list[str]]:
    """What is trained whole beside the adapters: the recipe's own modules, and the parts that are new to the base."""
    names = [*(section.library.get("modules_to_save") or []), *backbone.family.new_modules(backbone.base_model)]
    return {"modules_to_save": names} if names else {}


def _patterns(family: Family, section: LoraSection) -> dict[str, Any]:
    """Ranks and alphas of the parts that have their own, as PEFT's patterns; an inner part comes before the one around it."""
    inner_first = sorted(section.parts.items(), key=lambda item: -len(family.parts[item[0]]))
    patterns: dict[str, Any] = {}
    for key, attribute in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        default = getattr(section, attribute)
        values = {
            _pattern(family.parts[part]): value if (value := getattr(own, attribute)) is not None else default
            for part, own in inner_first
        }
        if any(value != default for value in values.values()):
            patterns[key] = {**section.library.get(key, {}), **values}  # PEFT takes the first that matches
    return patterns


def _pattern(path: str) -> str:
    """What matches every module at or below a path."""
    return rf"{re.escape(path)}(\..*)?" if path else ".*"


def _check_possible(backbone: Backbone, section: LoraSection) -> None:
    family = backbone.family
    problems = [
        Problem("lora.parts", f"a {family.name} model has no {part} of its own", f"its parts: {', '.join(family.parts)}")
        for part in section.parts
        if part not in family.parts
    ]
    problems += [
        Problem("lora.parts", f"{part} is trained in full, with the adapters", "take it out")
        for part in section.parts
        if part in family.trained_in_full(backbone.base_model)
    ]
    quantized = [name for name, module in backbone.base_model.named_modules() if is_quantized(module)]
    if section.rewrites_base and quantized:
        what = f"{section.init_lora_weights} rewrites the base's weights, and a quantised base cannot be rewritten exactly"
        problems.append(Problem("lora.init_lora_weights", what, "set it to true, or drop the section quantization"))
    if section.rewrites_base:
        also = [key for key in NOT_CONVERTED if section.library.get(key)]
        also += [f"the new part {path}" for path in backbone.family.new_modules(backbone.base_model)]
        if section.library.get("use_rslora") and _patterns(backbone.family, section):
            also.append("use_rslora with ranks or alphas of its own for some layers")
        problems += [
            Problem(
                "lora.init_lora_weights",
                f"an adapter that began as {section.init_lora_weights} and has {key} cannot be saved as plain LoRA",
                "set it to true, or take that out",
            )
            for key in also
        ]
    names = [name for name, _ in backbone.base_model.named_modules()]
    for wanted in [*(section.library.get("modules_to_save") or []), *backbone.family.new_modules(backbone.base_model)]:
        found = [name for name in names if f".{name}".endswith(f".{wanted}")]
        inside = [name for name in quantized if any(f"{name}.".startswith(f"{owner}.") for owner in found)]
        if not found:
            leaves = {leaf for name in names if (leaf := name.rsplit(".", 1)[-1]) and not leaf.isdigit()}
            problems.append(Problem("lora.modules_to_save", f"no module is called '{wanted}'", nearest(wanted, leaves)))
        elif inside:
            what = f"'{wanted}' is quantised and cannot be trained in full"
            problems.append(Problem("lora.modules_to_save", what, "name its part in quantization.skip_parts"))
    if problems:
        raise AdapterError(problems)


def detach(backbone: Backbone) -> Backbone:
    """The base again, without the adapter that was attached to it."""
    return replace(backbone, model=backbone.model.unload(), adapter=None)


def load_adapter(backbone: Backbone, folder: Path, name: str = "default", trainable: bool = False) -> Backbone:
    """The backbone with an adapter from a folder, beside those it has.

    Raises:
        AdapterError: the folder holds no adapter, or one of another base.
    """
    from peft import PeftModel

    if not (folder / "adapter_config.json").is_file():
        raise AdapterError(Problem(str(folder), "no adapter_config.json here", "name a run, or a folder that PEFT saved"))
    try:
        if isinstance(backbone.model, PeftModel):
            backbone.model.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
            return backbone
        model = PeftModel.from_pretrained(backbone.model, str(folder), adapter_name=name, is_trainable=trainable)
        return replace(backbone, model=model)
    except (RuntimeError, ValueError) as error:
        what = f"the adapter does not fit the base {backbone.base}: {' '.join(str(error).split())[:300]}"
        raise AdapterError(Problem(str(folder), what, "name the base it was trained on")) from None


def report(backbone: Backbone) -> list[PartReport]:
    """One line for each part of the model, and one for what is in none."""
    lines = {part: _Line() for part in (*backbone.family.parts, "other")}
    seen: set[int] = set()
    for owner, layer in backbone.base_model.named_modules():
        line = lines[part_of(backbone.family, owner) or "other"]
        line.adapted += bool(len(getattr(layer, "lora_A", ())))
        for name, parameter in layer.named_parameters(recurse=False):
            if id(parameter) in seen:  # tied
                continue
            seen.add(id(parameter))
            line.trained += size(parameter) if parameter.requires_grad else 0
            if any(mark in f"{owner}.{name}" for mark in ("lora_", "modules_to_save", "trainable_tokens_")):
                continue
            quantized = is_quantized(layer) and name == "weight"
            line.precisions.add(_quantized_name(layer) if quantized else str(parameter.dtype).removeprefix("torch."))
            line.parameters += layer.in_features * layer.out_features if quantized else size(parameter)
    return [
        PartReport(part, line.adapted, line.trained, line.parameters, "/".join(sorted(line.precisions)))
        for part, line in lines.items()
        if line.parameters or part != "other"
    ]


@dataclass
class _Line:
    adapted: int = 0
    trained: int = 0
    parameters: int = 0
    precisions: set[str] = field(default_factory=set)


def _quantized_name(layer: Any) -> str:
    return getattr(getattr(layer.weight, "quant_state", None), "quant_type", None) or "int8"
