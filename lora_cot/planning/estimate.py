"""Memory of a run, phase by phase, from its configuration: nothing is loaded and nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lora_cot.adapters.lora import report
from lora_cot.backbones import Backbone, part_of
from lora_cot.backbones.loading import choose_dtype, family_to_train
from lora_cot.backbones.quantization import is_quantized
from lora_cot.engines.local import PREFILL_TOKENS
from lora_cot.planning.outline import configuration, largest_block, outline, weight_bytes
from lora_cot.planning.steps import GRADIENTS, Reader, training_step
from lora_cot.planning.workload import Workload, workloads
from lora_cot.recipe import Recipe

OPTIMIZER_BYTES = {
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "adamw_8bit": 2.04,
    "adamw_bnb_8bit": 2.04,
    "paged_adamw_32bit": 8.0,
    "paged_adamw_8bit": 2.04,
    "adafactor": 0.1,
    "sgd": 0.0,
    "lion_8bit": 1.02,
    "paged_lion_8bit": 1.02,
    "lion_32bit": 4.0,
    "paged_lion_32bit": 4.0,
    "rmsprop": 4.0,
    "adagrad": 4.0,
}
"""Bytes of state for each trained parameter; of others, 8."""
DRIVER = 0.6e9
"""Bytes that a GPU's driver and libraries hold beside torch, at most."""
GAPS_GPU, GAPS_CPU = 0.1, 0.25
"""Share of what comes and goes that the allocator's gaps take, at most (on a CPU measured, docs/memory.md)."""
SCRATCH = 0.07e9
"""Bytes that libraries take on a CPU once they compute: threads, kernels and their buffers (measured)."""


Kind = Literal["process", "weights", "adapter", "optimizer", "gradients", "passing"]
"""What a thing that takes memory is; weights are the base's, and passing is what comes and goes."""


@dataclass(frozen=True)
class Item:
    """One thing that takes memory."""

    kind: Kind
    what: str
    """Its name on the plan."""
    size: float
    """Bytes."""
    detail: str = ""


@dataclass(frozen=True)
class Phase:
    """What is in memory at a phase's fullest moment."""

    name: str
    items: list[Item]

    @property
    def low(self) -> float:
        """Bytes, if nothing is wasted."""
        return sum(item.size for item in self.items)

    def size_of(self, kind: Kind) -> float:
        """Bytes of all things of a kind."""
        return sum(item.size for item in self.items if item.kind == kind)

    def high(self, gpu: bool) -> float:
        """Bytes with what allocator and driver may add."""
        gaps = (GAPS_GPU if gpu else GAPS_CPU) * self.size_of("passing")
        return self.low + gaps + (DRIVER if gpu else 0)


@dataclass(frozen=True)
class Simulated:
    """What running a recipe's model without data gave."""

    works: list[Workload]
    weights: list[Item]
    parameters: dict[str, int]
    """By part, adapters left out."""
    trained: int
    """Trained parameters of an adapter."""
    cast: bool
    """Whether adapters are computed in half precision."""
    step: dict[str, int]
    """Bytes by owner at the fullest moment of a training step."""
    reader: Reader
    largest_quantized: float
    """Bytes of the largest of the quantised weights, before it is."""
    block: int
    """Bytes of the largest block: what ZeRO-3 gathers at once, at least."""


@dataclass(frozen=True)
class Estimate:
    """The phases of a run on one device, and what they follow from."""

    gpu: bool
    phases: list[Phase]
    made: Simulated

    @property
    def always(self) -> list[Item]:
        """What is in memory in all phases."""
        first, *others = (phase.items for phase in self.phases)
        return [item for item in first if all(item in items for items in others)]

    @property
    def low(self) -> float:
        """Bytes of the fullest phase, if nothing is wasted."""
        return max(phase.low for phase in self.phases)

    @property
    def high(self) -> float:
        """Bytes of the fullest phase, with what allocator and driver may add."""
        return max(phase.high(self.gpu) for phase in self.phases)


def simulate(recipe: Recipe, gpu: bool) -> Simulated:
    """Run a recipe's model without data.

    Args:
        recipe: its sections evaluation and search change nothing here.
        gpu: on one, in mixed precision as training chooses it there; else on the CPU.

    Raises:
        BackboneError, AdapterError, RecipeError: as in training.
    """
    base, keys = configuration(recipe), recipe.training.library
    family = family_to_train(base, recipe.model.revision)
    dtype = choose_dtype(recipe.model.dtype, base, recipe.model.revision, family, recipe.quantization is not None)
    cast = gpu and bool(keys.get("fp16") or keys.get("bf16", True))
    backbone = outline(recipe, base, dtype, torch.bfloat16 if cast else torch.float32)
    works = workloads(recipe, backbone)
    return Simulated(
        works=works,
        weights=weights(backbone),
        parameters={line.part: line.parameters for line in report(backbone)},
        trained=sum(p.numel() for p in backbone.model.parameters() if p.requires_grad),
        cast=cast,
        step=max((training_step(backbone, recipe, work, gpu) for work in works), key=lambda step: sum(step.values())),
        reader=Reader(backbone, max(works, key=lambda work: work.length), gpu),
        largest_quantized=_largest_quantized(backbone, dtype),
        block=largest_block(backbone.base_model),
    )


def estimate(recipe: Recipe, made: Simulated, process: float | None = None) -> Estimate:
    """Memory of a run.

    Args:
        recipe: what is run.
        made: what its simulation gave.
        process: on a CPU the bytes that Python, its libraries and the samples take; None on a GPU.
    """
    keys, evaluation = recipe.training.library, recipe.evaluation.batch_size
    taken = [] if process is None else [Item("process", "process", process + SCRATCH, "Python, its libraries, the samples")]
    optim = keys.get("optim", "adamw_torch_fused")
    adapter = Item("adapter", "adapter", 4 * made.trained, f"{made.trained:,} parameters in float32")
    state = [adapter, *([Item("adapter", "adapter, cast", 2 * made.trained, "autocast's copy")] if made.cast else [])]
    state.append(Item("optimizer", "optimizer", OPTIMIZER_BYTES.get(optim, 8.0) * made.trained, optim))
    always = [*taken, *made.weights]
    loading = Item("passing", "largest weight, not yet quantised", made.largest_quantized)
    phases = [Phase("loading", [*always, loading]), Phase("training", [*always, *state, *_activations(made.step)])]
    if keys.get("eval_strategy", "no") != "no" and recipe.training.eval_generations:
        questions = min(recipe.training.eval_generations, evaluation)
        phases.append(Phase("evaluating", [*always, *state, _answering(recipe, made.reader, questions, 1)]))
    phases.append(
        Phase("answering", [*always, adapter, _answering(recipe, made.reader, evaluation, recipe.search.most_candidates)])
    )
    return Estimate(process is None, phases, made)


def _answering(recipe: Recipe, reader: Reader, questions: int, candidates: int) -> Item:
    """The fullest moment of answering: reading the prompts, or all candidates at their full length."""
    tokens = sum(recipe.search.budget(stage) for stage in recipe.format.build().stages)
    together = min(questions, max(1, PREFILL_TOKENS // reader.prompt))
    reading = together * reader.reading + reader.cache(questions - together, 0, 0)
    cache = reader.cache(questions, candidates, tokens)
    if reading > cache:
        return Item("passing", "reading prompts", reading, f"{together} of {reader.prompt} tokens at once")
    what = f"{questions} questions × {candidates} candidates of {reader.prompt + tokens} tokens"
    return Item("passing", "keys and values", cache, what)


def _activations(made: dict[str, int]) -> list[Item]:
    return [
        Item("gradients", owner, size) if owner == GRADIENTS else Item("passing", f"activations: {owner}", size)
        for owner, size in made.items()
    ]


def weights(backbone: Backbone) -> list[Item]:
    """A model's frozen weights by part and precision; tied weights count once."""
    found: dict[tuple[str, str], int] = {}
    seen: set[int] = set()
    for owner, layer in backbone.base_model.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            quantized = is_quantized(layer) and name == "weight"
            kind = ("4-bit" if getattr(parameter, "quant_state", None) else "8-bit") if quantized else _name(parameter.dtype)
            key = part_of(backbone.family, f"{owner}.{name}") or "other", kind
            found[key] = found.get(key, 0) + weight_bytes(layer, name, parameter)
    return [Item("weights", part, size, kind) for (part, kind), size in found.items()]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _largest_quantized(backbone: Backbone, dtype: torch.dtype) -> float:
    sizes = [
        layer.in_features * layer.out_features * dtype.itemsize
        for layer in backbone.base_model.modules()
        if is_quantized(layer) and isinstance(layer, nn.Linear)
    ]
    return max(sizes, default=0)
