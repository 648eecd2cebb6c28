"""What each file of the merged model holds: every tensor of the base, by its own name, with what happens to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_cot.errors import AdapterError, Problem
from lora_cot.merging.base import Base
from lora_cot.merging.checkpoint import FLOATS, TensorFile, write_header
from lora_cot.merging.deltas import Adapter, Change, LowRank


@dataclass(frozen=True)
class Step:
    """One tensor of the merged model."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: TensorFile | None
    """Of the base, where its values are; None if the adapter alone has them."""
    source: str
    """Its name there."""
    change: Change | None = None
    """None: its bytes are copied."""
    quantized: bool = False
    """The adapter was trained on the 4-bit form of it, and what that form stands for takes its place."""

    @property
    def size(self) -> int:
        """Bytes."""
        size = torch.Size(self.shape).numel()
        return self.file.entries[self.source].size if self.file else size * FLOATS[self.dtype].itemsize


@dataclass(frozen=True)
class Output:
    """One file of the merged model."""

    name: str
    header: bytes
    steps: tuple[Step, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.header) + sum(step.size for step in self.steps)


@dataclass(frozen=True)
class MergePlan:
    """A merged model before it is written."""

    base: Path
    adapter: Adapter
    outputs: tuple[Output, ...]
    added: Mapping[str, str]
    """Tensor that the base lacks → file it is in."""
    unties: bool
    """Weights that the base ties are two in the merged model."""
    parameters: Mapping[str, str]
    """Tensor of the base → parameter of the model."""
    tied: tuple[tuple[str, ...], ...]
    """Parameters that the base makes one weight."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(output.size for output in self.outputs)


def make_plan(base: Base, adapter: Adapter, quantized: frozenset[str] = frozenset()) -> MergePlan:
    """What the merged model's files hold.

    Args:
        base: whose files they are.
        adapter: placed on it.
        quantized: layers, by path, whose 4-bit form the adapter was trained on, where the merge is to be onto that.

    Raises:
        AdapterError: a part of the adapter finds no tensor of the base, or one of another shape.
    """
    files, tensors, parameters = base.files, base.tensors, base.parameters
    where = {parameter: tensor for tensor, parameter in parameters.items()}
    changes, apart, unties = _settle_tied(adapter, base.tied, where)
    _check_homes(base, adapter, where, changes, apart)
    steps: dict[str, list[Step]] = {file.path.name: [] for file in files}
    for file in files:
        for name, entry in file.entries.items():
            parameter = parameters.get(name, "")
            layer = parameter.removesuffix(".weight")
            step = Step(name, entry.dtype, entry.shape, file, name, changes.get(parameter), layer in quantized)
            steps[file.path.name].append(step)
    added = {}
    for parameter in sorted(set(changes) | set(apart)):
        if parameter not in where:
            source = apart.get(parameter)
            step = _added(parameter, changes.get(parameter), tensors[source] if source else None, source, adapter)
            home = tensors[source].path.name if source else files[-1].path.name
            steps[home].append(step)
            added[step.name] = home
    for step in (step for file in steps.values() for step in file if step.change):
        _check_fits(step, adapter)
    outputs = tuple(_output(file, steps[file.path.name]) for file in files)
    return MergePlan(base.folder, adapter, outputs, added, unties, parameters, base.tied)


def _check_homes(base: Base, adapter: Adapter, where: Mapping[str, str], changes: Mapping[str, Any], apart: Any) -> None:
    """That every change finds a tensor, and that what is new to the base is there."""
    homeless = [name for name in changes if name not in where and name not in apart and name not in base.new]
    if homeless:
        what = f"{len(homeless)} tensors that it changes are not in the base's files, {homeless[0]} among them"
        raise AdapterError(Problem(str(adapter.file.path), what, "name the base it was trained on"))
    missing = sorted(name for name in base.new if name not in where and name not in changes)
    if missing:
        what = f"neither it nor the base holds {missing[0]}"
        raise AdapterError(Problem(str(adapter.file.path), what, "the adapter was not saved whole: save it again"))


def _added(parameter: str, change: Change | None, file: TensorFile | None, source: str | None, adapter: Adapter) -> Step:
    """A tensor that the base lacks: a copy of the one it was tied to, or one of the adapter alone, in its own precision."""
    if file and source:
        entry = file.entries[source]
        return Step(parameter, entry.dtype, entry.shape, file, source, change)
    assert change is not None and change.replaced is not None
    entry = adapter.file.entries[change.replaced]
    return Step(parameter, entry.dtype, entry.shape, None, parameter, change)


def _output(file: TensorFile, steps: list[Step]) -> Output:
    if len(steps) == len(file.entries):
        return Output(file.path.name, file.header, tuple(steps))
    header = write_header(((s.name, s.dtype, s.shape, s.size) for s in steps), file.metadata)
    return Output(file.path.name, header, tuple(steps))


def _settle_tied(
    adapter: Adapter, groups: Iterable[tuple[str, ...]], where: Mapping[str, str]
) -> tuple[dict[str, Change], dict[str, str], bool]:
    """What happens to each parameter where some are one weight, and which must now have a tensor of their own.

    Returns:
        Changes by parameter; parameter → tensor of the base that holds what it is tied to; and whether any come apart.
        Files may hold two tensors of what is tied: even then the configuration must say that they have come apart.
    """
    changes, apart, unties = dict(adapter.changes), {}, False
    for group in groups:
        theirs = [changes.get(name) for name in group]
        if not any(theirs):
            continue
        together = adapter.stays_tied or len(set(theirs)) == 1
        if together:
            one = next(change for change in theirs if change)
            changes.update({name: one for name in group if name in where})
            for name in group:
                if name not in where:
                    changes.pop(name, None)
        else:
            unties = True
            apart.update({name: where[group[0]] for name in group if name not in where})
    return changes, apart, unties


def _check_fits(step: Step, adapter: Adapter) -> None:
    """That shapes fit, and that the tensor is of a type that can be added to.

    Raises:
        AdapterError: they do not.
    """
    shapes = {name: entry.shape for name, entry in adapter.file.entries.items()}
    change = step.change or Change()
    rows, width = step.shape[0], torch.Size(step.shape[1:]).numel()
    fits = step.dtype in FLOATS
    if change.replaced:
        fits &= shapes[change.replaced] == step.shape
    if change.low_rank:
        fits &= _low_rank_fits(change.low_rank, shapes, rows, width)
    if change.term:
        fits &= shapes[change.term[0]] == step.shape
    if change.rows:
        fits &= shapes[change.rows[0]] == (len(change.rows[1]), width) and max(change.rows[1]) < rows
    if not fits:
        what = f"{change.taken[0]} does not fit the base's {step.name}, {step.dtype} {list(step.shape)}"
        raise AdapterError(Problem(str(adapter.file.path), what, "name the base it was trained on"))


def _low_rank_fits(low: LowRank, shapes: Mapping[str, tuple[int, ...]], rows: int, width: int) -> bool:
    rank, inside = shapes[low.a][0], torch.Size(shapes[low.a][1:]).numel()
    outside, same = shapes[low.b][0], torch.Size(shapes[low.b][1:]).numel()
    return rank == same and ((outside, inside) == (rows, width) or (low.transposed and (inside, outside) == (rows, width)))


def index_text(plan: MergePlan, text: str) -> str:
    """The base's index, with the tensors that were added."""
    if not plan.added:
        return text
    index = json.loads(text)
    index["weight_map"] = dict(sorted({**index["weight_map"], **plan.added}.items()))
    index.setdefault("metadata", {})["total_size"] = sum(step.size for output in plan.outputs for step in output.steps)
    return json.dumps(index, indent=2) + "\n"
