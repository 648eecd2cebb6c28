"""Parameters that DeepSpeed's ZeRO-3 has split among ranks, seen whole by whatever is not the engine's own forward.

Under ZeRO-3 a rank holds a slice of each parameter and an empty tensor in its place; the engine's hooks gather a layer's
while the engine computes it. Nothing here imports deepspeed unless a parameter is split.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

LEFT = ("pre_bwd_fn", "post_bwd_fn", "applied_pre_backward_ref_cnt", "ds_grads_remaining")
"""What a ZeRO-3 engine leaves on every module when it is destroyed."""


def splits_on_load() -> bool:
    """Whether `from_pretrained` splits what it loads: a ZeRO-3 configuration is alive."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return is_deepspeed_zero3_enabled()


def size(parameter: torch.Tensor) -> int:
    """Numbers in a parameter, also where it is split."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


@contextmanager
def whole(model: torch.nn.Module, trained: bool = False) -> Iterator[None]:
    """Every parameter on every rank while it lasts; nothing happens where none is split.

    All ranks must enter it and leave it; in between each may compute as often as it likes, but not through an engine
    (see `unhooked`). Inside another one it does nothing.

    Args:
        model: what is used.
        trained: only what is trained, which is enough for saving an adapter.
    """
    split: list[Any] = [p for p in model.parameters() if hasattr(p, "ds_id") and (p.requires_grad or not trained)]
    if not split:
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus

    with GatheredParameters([p for p in split if p.ds_status == ZeroParamStatus.NOT_AVAILABLE]):
        yield


@contextmanager
def unhooked(engine: Any) -> Iterator[None]:
    """A ZeRO-3 engine's hooks out of the way: after each layer they would take away what was gathered.

    Args:
        engine: the trainer's wrapped model; anything but a ZeRO-3 engine is left alone.
    """
    offload = _offload(engine)
    if offload is None:
        yield
        return
    from trl.models.utils import add_hooks, remove_hooks

    remove_hooks(engine)
    try:
        yield
    finally:
        add_hooks(engine)


def forget_gradients(engine: Any) -> None:
    """Before a step: a ZeRO-3 engine keeps the gradients of the last one, and takes them again for what this one leaves
    unused, such as an adapted vision encoder in a step of texts alone (seen with DeepSpeed 0.19.8).
    """
    if _offload(engine) is None:
        return
    optimizer = engine.optimizer
    kept = getattr(optimizer, "grad_partitions_flat_buffer", None)
    groups = [getattr(flat, "grad", None) for flat in getattr(optimizer, "fp32_partitioned_groups_flat", ())]
    for gradient in (kept, *groups):
        if gradient is not None:
            gradient.zero_()


def release(engine: Any) -> None:
    """Take a DeepSpeed engine off its model, which stays as it is, split or whole; a later pass makes another engine."""
    offload = _offload(engine)
    if offload is not None:
        offload.partition_all_parameters()
    engine.destroy()
    if offload is None:
        return
    for module in offload.module.modules():
        for name in LEFT:  # the next engine would call this one's through them, and gather nothing in its backward
            module.__dict__.pop(name, None)
    from deepspeed.runtime.zero import parameter_offload

    stack = parameter_offload.FWD_MODULE_STACK  # else it keeps the model alive
    stack[:] = [module for module in stack if module is not offload.module]


def _offload(engine: Any) -> Any:
    """What holds the hooks of a ZeRO-3 engine."""
    return getattr(getattr(engine, "optimizer", None), "parameter_offload", None)
