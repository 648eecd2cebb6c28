"""A model's own code run on tensors without data, and the bytes that are alive at once counted.

Fractions live on the `meta` device: they have shapes and no values. Whole numbers, and what follows from them alone, are
really computed, on the CPU, so that code which asks where the image slots of a text are gets its answer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

META, CPU = torch.device("meta"), torch.device("cpu")
BATCH = "batch"
"""Owner of what the model is given."""
REST = "recomputation and backward"
"""Owner of what is made outside every part."""
LOGITS = "logits"
"""Owner of what scoring the labels makes, forward and backward."""
aten = torch.ops.aten


class Counting(TorchDispatchMode):
    """While it is active, the bytes of the tensors made since: `live`, their `peak`, and whose they were then."""

    def __init__(self, model: nn.Module):
        """
        Args:
            model: its parameters and buffers are not counted.
        """
        super().__init__()
        self.owners = [REST]
        self.live, self.peak = 0, 0
        self.by_owner: dict[str, int] = {}
        self.at_peak: dict[str, int] = {}
        held = [*model.parameters(), *model.buffers()]
        self._made: dict[int, tuple[int, str]] = {_key(tensor): (0, REST) for tensor in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = _run(func, args, kwargs or {})
        tree_map_only(torch.Tensor, lambda tensor: self.see(tensor, self.owners[-1]), made)
        return made

    def add(self, owner: str, size: int) -> None:
        """Count bytes that no tensor stands for; they stay."""
        self.live += size
        self.by_owner[owner] = self.by_owner.get(owner, 0) + size
        if self.live > self.peak:
            self.peak, self.at_peak = self.live, dict(self.by_owner)

    def see(self, tensor: torch.Tensor, owner: str) -> None:
        """Count a tensor's bytes until it is gone, unless they are."""
        if (key := _key(tensor)) not in self._made:
            size = tensor.untyped_storage().nbytes()
            self._made[key] = size, owner
            weakref.finalize(tensor.untyped_storage(), self._free, key)
            self.add(owner, size)

    def _free(self, key: int) -> None:
        size, owner = self._made.pop(key)
        self.live -= size
        self.by_owner[owner] -= size


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: for real if all it takes is known, else of shapes."""
    tensors: list[torch.Tensor] = []
    tree_map_only(torch.Tensor, tensors.append, (args, kwargs))
    if any(tensor.device == META for tensor in tensors):
        if func is aten._local_scalar_dense.default:
            return 1.0
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        return _shapes(func, args, kwargs)
    if not tensors:
        made = _shapes(func, args, kwargs)
        return made if _has_fractions(made) else func(*args, **{**kwargs, "device": CPU})
    return func(*args, **({**kwargs, "device": CPU} if "device" in kwargs else kwargs))


def _shapes(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(META), (args, kwargs))
    has_device = any(argument.name == "device" for argument in func._schema.arguments)
    return func(*args, **({**kwargs, "device": META} if has_device else kwargs))


def _has_fractions(made: Any) -> bool:
    found: list[bool] = []
    tree_map_only(torch.Tensor, lambda tensor: found.append(tensor.is_floating_point()), made)
    return any(found)


def _places(index: torch.Tensor | None) -> list[torch.Tensor | None]:
    """A mask as the places it leaves: how many there are is known."""
    if index is None or index.dtype != torch.bool or index.device == META:
        return [index]
    return list(index.nonzero(as_tuple=True))


class _Attention(torch.autograd.Function):
    """What a fused attention keeps: its inputs, its mask as numbers, its output, and one fp32 number for each query."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> torch.Tensor:
        """(B, heads, T, D)."""
        bias = query.new_empty(mask.shape) if mask is not None and mask.dtype == torch.bool else mask
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, logsumexp, bias)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        """Gradients of query, key and value."""
        query, key, value, *_ = ctx.saved_tensors
        gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        if query.dtype != torch.float32:  # the query's is summed up in float32
            query.new_empty(query.shape, dtype=torch.float32)
        return *gradients, None


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, *_: Any, **__: Any) -> Any:
    return _Attention.apply(query, key, value, attn_mask)


def _owned(counted: Counting, owner: str, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function; what it makes is the owner's."""
    counted.owners.append(owner)
    try:
        return function(*args)
    finally:
        counted.owners.pop()


def _in_place(*_: Any, **__: Any) -> None:
    """What a kernel makes that writes into what it is given."""


@contextmanager
def counting(model: nn.Module, parts: Mapping[str, nn.Module], inputs: Mapping[str, Any], gpu: bool) -> Iterator[Counting]:
    """Count what a model on the meta device makes, part by part.

    Args:
        model: all of it on the meta device.
        parts: the innermost that is at work owns what is made.
        inputs: the tensors that it is given; they count.
        gpu: TRL's head scores a tile of logits in place there; elsewhere it makes several tiles of each.
    """
    from bitsandbytes.autograd import _functions
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    counted, asked = Counting(model), torch.is_autocast_enabled
    for tensor in inputs.values():
        counted.see(tensor, BATCH)
    in_place = ("_forward_tile", "_backward_tile", "_addmm_fp32") if gpu else ()

    def autocast(*device: str) -> bool:
        return asked(*device) if device != ("meta",) else False

    with ExitStack() as stack:
        for name, module in parts.items():
            hooks = (
                module.register_forward_pre_hook(lambda *_, name=name: counted.owners.append(name)),
                module.register_forward_hook(lambda *_: counted.owners.pop() and None, always_call=True),
            )
            for hook in hooks:
                stack.callback(hook.remove)
        for owner, attribute, stand_in in (
            (torch, "is_autocast_enabled", autocast),
            (torch.nn.functional, "scaled_dot_product_attention", _attention),
            (utils, "_use_triton", lambda device: True),
            (_functions, "MatMul8bitLt", _functions.MatMul8bitFp),  # it looks for outliers, which takes values
            *((chunked_logprob, kernel, _in_place) for kernel in in_place),
        ):
            stack.enter_context(mock.patch.object(owner, attribute, stand_in))
        head = chunked_logprob.ChunkedLogProbFunction
        for way in ("forward", "backward"):
            scored = staticmethod(partial(_owned, counted, LOGITS, getattr(head, way)))
            stack.enter_context(mock.patch.object(head, way, scored))
        stack.enter_context(counted)
        yield counted
