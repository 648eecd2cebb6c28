"""A second opinion on a file that was written: some outputs of each layer beside PEFT's own merge of them.

What an adapter does is read here anew, from PEFT's layers and the adapter's names, and not from `deltas`: a mistake there, in
the plan or in the sums is no mistake here. A whole layer would take several times its memory; outputs are merged by
themselves, for each has its own row of lora_B, magnitude and bias.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_cot.errors import MergeError, Problem
from lora_cot.merging.checkpoint import FLOATS, open_file
from lora_cot.merging.deltas import PREFIX
from lora_cot.merging.plan import MergePlan, Output, Step

OUTPUTS, TOKENS = 8, 64
"""Outputs of a layer that are looked at; tokens that were trained alone."""
NOISE = 4e-6
"""What the order of sums in float32 may do, as a share of an output's largest value: 4e-7 was measured
on tiny layers of every family."""


def sampled(count: int) -> torch.Tensor:
    """Which outputs of so many are looked at, the first and the last among them."""
    return torch.linspace(0, max(count - 1, 0), min(count, OUTPUTS), dtype=torch.float64).long().unique()


def check_output(plan: MergePlan, output: Output, path: Path, unmerged: Mapping[str, torch.Tensor]) -> None:
    """See that each tensor of a file is what PEFT makes of the base's; of a type that takes no adapter, nothing is looked at.

    Args:
        plan: of the model.
        output: what the file is to hold.
        path: the file, whole.
        unmerged: of each tensor that was dequantised, its sampled rows without the adapter.

    Raises:
        MergeError: a value is none of those that rounding allows.
    """
    modules = dict(plan.adapter.placed.named_modules())
    written = open_file(path)
    for step in output.steps:
        if step.dtype in FLOATS and written.entries[step.name].size:
            _check(plan, modules, step, written.values(step.name), unmerged.get(step.name))


def _check(
    plan: MergePlan, modules: Mapping[str, Any], step: Step, written: torch.Tensor, unmerged: torch.Tensor | None
) -> None:
    parameter = _adapted(plan, modules, plan.parameters.get(step.name, step.name))
    layer, _, leaf = parameter.rpartition(".")
    module, file = modules.get(layer), plan.adapter.file
    saved = (f"{PREFIX}{parameter}", f"{PREFIX}{layer}.base_layer.{leaf}")
    whole = next((file.values(key) for key in saved if key in file.entries), None)
    indices = _indices(module) if leaf == "weight" else []
    along = 1 if leaf == "weight" and _is_turned(module) else 0
    places = sampled(written.shape[along] if written.dim() else 1)
    if indices:
        places = torch.tensor([place for place in places.tolist() if place not in set(indices)] + indices[:TOKENS])
    if whole is None and unmerged is not None and not indices:
        before = unmerged.view(len(places), *written.shape[1:])
    else:
        before = whole if whole is not None else step.file.values(step.source)  # type: ignore[union-attr]
        before = before.view(written.shape).reshape(written.shape or (1,)).index_select(along, places)
    after = before.float()
    if indices:
        key = f"{PREFIX}{_token_owner(modules, layer)}.token_adapter.trainable_tokens_delta"
        after[-len(indices[:TOKENS]) :] = file.values(key)[:TOKENS].float()
    elif _is_adapted(module, leaf):
        after = _merged(plan, layer, module, leaf, after, places)
    found = written.reshape(written.shape or (1,)).index_select(along, places)
    _compare(step.name, plan.adapter.file.path, after.transpose(0, along), found.transpose(0, along))


def _compare(name: str, adapter: Path, wanted: torch.Tensor, found: torch.Tensor) -> None:
    """Rounding is monotone: a value may be what the bounds of the sum are rounded to, or lie between."""
    largest = wanted.reshape(len(wanted), -1).abs().amax(1)
    noise = (NOISE * largest).view(-1, *[1] * (wanted.dim() - 1))
    low, high = (wanted - noise).to(found.dtype), (wanted + noise).to(found.dtype)
    wrong = ~((low <= found) & (found <= high))  # a NaN is none of them
    if wrong.any():
        count, furthest = int(wrong.sum()), (found.float() - wanted).abs().max().item()
        what = f"{count} of {found.numel()} values of the merged tensor {name} that were looked at are not those of PEFT's own"
        remedy = "this is a fault of the merge or of the disk: merge it with PEFT's merge_and_unload"
        raise MergeError(Problem(str(adapter), f"{what} merge, by {furthest:.2g} at most", remedy))


def _adapted(plan: MergePlan, modules: Mapping[str, Any], parameter: str) -> str:
    """The parameter whose adapter a tensor takes: its own, or that of one tied to it which has no tensor of its own."""
    held = {*plan.parameters.values(), *plan.added}
    group = next((group for group in plan.tied if parameter in group), ())
    for name in (parameter, *(other for other in group if other not in held)):
        layer, _, leaf = name.rpartition(".")
        own = {f"{PREFIX}{name}", f"{PREFIX}{layer}.base_layer.{leaf}"} & plan.adapter.file.entries.keys()
        if own or _is_adapted(modules.get(layer), leaf) or (leaf == "weight" and _indices(modules.get(layer))):
            return name
    return parameter


def _is_adapted(module: Any, leaf: str) -> bool:
    from peft.tuners.lora import LoraLayer

    if not isinstance(module, LoraLayer) or "default" not in module.scaling:
        return False
    return leaf == "weight" or (leaf == "bias" and bool(module.lora_bias.get("default")))


def _is_turned(module: Any) -> bool:
    """Whether outputs are a weight's columns."""
    from peft.tuners.lora.layer import Embedding

    return isinstance(module, Embedding) or bool(getattr(module, "fan_in_fan_out", False))


def _indices(module: Any) -> list[int]:
    """Tokens that were trained alone."""
    from peft.utils.other import TrainableTokensWrapper

    return list(module.token_adapter.token_indices["default"]) if isinstance(module, TrainableTokensWrapper) else []


def _token_owner(modules: Mapping[str, Any], layer: str) -> str:
    """The layer that trained tokens are saved under."""
    tied = modules[layer].token_adapter.tied_adapter
    return layer if tied is None else next(n for n, m in modules.items() if getattr(m, "token_adapter", None) is tied)


def _merged(plan: MergePlan, layer: str, module: Any, leaf: str, before: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Outputs of a layer after PEFT's own merge, in float32."""
    file = plan.adapter.file
    small = copy.deepcopy(module)  # on the meta device: nothing is copied but its settings
    for key, empty in module.state_dict().items():
        if key.startswith("base_layer."):
            continue
        name = f"{PREFIX}{layer}.{key.replace('.default', '', 1)}"
        name = name if name in file.entries else name.removesuffix(".weight")
        value = file.values(name).view(empty.shape)
        if "_A." not in key:  # lora_B, its bias, magnitudes: they have a row an output, those of convolutions a column
            value = value.index_select(1 if "magnitude" in key and value.dim() > 1 else 0, places)
        _put(small, key, value.float())
    weight, bias = before, None
    if leaf == "bias":
        shape = list(module.get_base_layer().weight.shape)
        shape[_is_turned(module)] = len(places)
        weight, bias = torch.zeros(shape), before
    elif module.lora_bias.get("default"):
        bias = torch.zeros(len(places))
    base = small.get_base_layer()
    base.weight, base.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
    with torch.no_grad():
        small.merge(safe_merge=True)
    merged: torch.Tensor = getattr(base, leaf).detach()
    return merged


def _put(module: nn.Module, key: str, value: torch.Tensor) -> None:
    owner, _, name = key.rpartition(".")
    setattr(module.get_submodule(owner), name, nn.Parameter(value, requires_grad=False))
