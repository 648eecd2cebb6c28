"""What each GPU holds when several share a run through DeepSpeed ZeRO (Rajbhandari et al. 2020, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

from lora_cot.planning.estimate import Estimate, Phase
from lora_cot.recipe import Recipe

GPUS = (1, 2, 4, 8)
STAGES = ("none", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
"""How a run is shared: the names of the configurations in ds_configs/, and `none`, each GPU holding everything."""
ADAM_ON_HOST = 12.0
"""Bytes of float32 weight and Adam's two moments for each trained parameter that is offloaded."""


@dataclass(frozen=True)
class Share:
    """Memory of one GPU and of its host, in bytes."""

    gpus: int
    stage: str
    low: float
    high: float
    host: float


def shares(recipe: Recipe, whole: Estimate) -> list[Share]:
    """Training, for each number of GPUs and each ZeRO stage."""
    training = next(phase for phase in whole.phases if phase.name == "training")
    return [_share(recipe, whole, training, gpus, stage) for gpus in GPUS for stage in STAGES]


def _share(recipe: Recipe, whole: Estimate, training: Phase, gpus: int, stage: str) -> Share:
    number = int(stage[4]) if stage != "none" else 0
    offload = stage.endswith("offload")
    split = gpus if number else 1
    weights, adapter = training.size_of("weights"), training.size_of("adapter")
    state, gradients = training.size_of("optimizer"), training.size_of("gradients")
    rest = training.low - weights - state - gradients - adapter
    sharded = number == 3 and _can_be_sharded(recipe)
    gathered = min(weights, 2 * whole.made.block) if sharded else 0.0
    kept = min(weights, (0.0 if offload else weights / split) + gathered) if sharded else weights
    on_gpu = kept + (adapter / split if number == 3 else adapter)
    on_gpu += 0.0 if offload else state / split
    on_gpu += 0.0 if offload and number == 3 else gradients / (split if number >= 2 else 1)
    host = (ADAM_ON_HOST * whole.made.trained + (weights if sharded else 0)) / split if offload else 0.0
    low = on_gpu + rest
    return Share(gpus, stage, low, low + training.high(whole.gpu) - training.low, host)


def _can_be_sharded(recipe: Recipe) -> bool:
    """ZeRO-3 splits 4-bit weights, which a run through DeepSpeed stores as numbers of the base's type, but not int8."""
    section = recipe.quantization
    return section is None or not section.load_in_8bit
