"""LoRA by part: the recipe names parts of the model, never patterns that may match more than was meant.

`target_modules=["q_proj", "v_proj"]` given straight to PEFT also adapts the vision tower of LLaVA and Mllama. Here the
full path of every layer that gets an adapter is worked out first, counted, and reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lora_cot.backbones import Backbone, part_of
from lora_cot.backbones.quantization import is_quantized
from lora_cot.errors import AdapterError, Problem, nearest
from lora_cot.recipe.schema import LoraSection


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
    for name, module in backbone.base_model.named_modules():
        part = part_of(backbone.family, name)
        if part in linear and isinstance(module, nn.Linear):
            linear[part].append(name)
    leaves = {name.rsplit(".", 1)[-1] for names in linear.values() for name in names}
    problems = [Problem("lora.parts", f"{part} has no linear layer") for part, names in linear.items() if not names]
    wanted = set(section.target_modules or leaves)
    problems += [
        Problem("lora.target_modules", f"no linear layer of {section.parts} is called '{name}'", nearest(name, leaves))
        for name in sorted(wanted - leaves)
    ]
    if problems:
        raise AdapterError(problems)
    return [name for names in linear.values() for name in names if name.rsplit(".", 1)[-1] in wanted]


def attach(backbone: Backbone, section: LoraSection) -> Backbone:
    """The backbone with new adapters; only they are trained.

    Raises:
        AdapterError: see `target_paths`.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=target_paths(backbone, section), task_type="CAUSAL_LM", **section.library)
    backbone.model.requires_grad_(False)
    return _with_model(backbone, get_peft_model(backbone.model, config))


def load_adapter(backbone: Backbone, folder: Path, trainable: bool = False) -> Backbone:
    """The backbone with an adapter from a folder.

    Raises:
        AdapterError: the folder holds no adapter, or one of another base.
    """
    from peft import PeftModel

    if not (folder / "adapter_config.json").is_file():
        raise AdapterError(Problem(str(folder), "no adapter_config.json here", "name a run, or a folder that PEFT saved"))
    try:
        return _with_model(backbone, PeftModel.from_pretrained(backbone.model, str(folder), is_trainable=trainable))
    except (RuntimeError, ValueError) as error:
        what = f"the adapter does not fit the base {backbone.base}: {' '.join(str(error).split())[:300]}"
        raise AdapterError(Problem(str(folder), what, "name the base it was trained on")) from None


def _with_model(backbone: Backbone, model: Any) -> Backbone:
    return Backbone(backbone.family, model, backbone.processor, backbone.base, backbone.revision)


def report(backbone: Backbone) -> list[PartReport]:
    """One line for each part of the model."""
    model, lines = backbone.base_model, []
    for part, path in backbone.family.parts.items():
        module = model.get_submodule(path)
        precisions, total = set(), 0
        for owner, layer in module.named_modules():
            for name, parameter in layer.named_parameters(recurse=False):
                if "lora_" in owner or "lora_" in name:
                    continue
                quantized = is_quantized(layer) and name == "weight"
                precisions.add(_quantized_name(layer) if quantized else str(parameter.dtype).removeprefix("torch."))
                total += layer.in_features * layer.out_features if quantized else parameter.numel()
        adapted = sum(1 for layer in module.modules() if len(getattr(layer, "lora_A", ())))
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        lines.append(PartReport(part, adapted, trained, total, "/".join(sorted(precisions))))
    return lines


def _quantized_name(layer: Any) -> str:
    return getattr(getattr(layer.weight, "quant_state", None), "quant_type", None) or "int8"
