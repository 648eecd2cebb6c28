"""A merged tensor, some rows at a time: sums in float32, rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lora_cot.errors import MergeError, Problem
from lora_cot.merging.checkpoint import FLOATS, TensorFile
from lora_cot.merging.deltas import Change, LowRank
from lora_cot.merging.plan import Step

BLOCK = 1 << 20
"""Values that are worked on at once: 4 MiB in float32, about what a processor's cache holds."""


def merged_blocks(step: Step, adapter: TensorFile, four_bit: FourBit | None) -> Iterator[torch.Tensor]:
    """A merged tensor's rows, in order, each block in the tensor's own type; a block is overwritten by the next but one.

    Args:
        step: what happens to the tensor.
        adapter: its tensors.
        four_bit: how a quantised tensor was quantised.

    Raises:
        MergeError: a sum is not finite.
    """
    change = step.change or Change()
    source = _flat(adapter.values(change.replaced) if change.replaced else _of_base(step))
    count, width = source.shape
    many = max(1, min(count, BLOCK // max(width, 1)))
    many = -(-many // 64) * 64 if step.quantized else many  # blocks of quantised values then end where rows end
    read = four_bit.quantize(source, many).rows if step.quantized and four_bit and not change.replaced else None
    work = torch.empty(min(many, count), width)
    made = [torch.empty(min(many, count), width, dtype=FLOATS[step.dtype]) for _ in range(2)]
    lengths = None
    if change.low_rank and change.low_rank.magnitude and change.low_rank.transposed:
        lengths = _lengths(source, read, change.low_rank, adapter, work)
    for number, begin in enumerate(range(0, count, many)):
        end = min(begin + many, count)
        block, out = work[: end - begin], made[number % 2][: end - begin]
        block.copy_(read(begin, end) if read else source[begin:end])
        _apply(block, begin, end, change, adapter, lengths)
        out.copy_(block)
        if not torch.isfinite(out).all():
            what = f"the merged tensor {step.name} holds values that are not finite"
            raise MergeError(Problem(str(adapter.path), what, "the adapter's update is too large for the base's type"))
        yield out


def _of_base(step: Step) -> torch.Tensor:
    assert step.file is not None
    return step.file.values(step.source)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """(rows, the rest)."""
    return tensor.reshape(tensor.shape[0], -1) if tensor.dim() else tensor.reshape(1, 1)


def _apply(
    block: torch.Tensor, begin: int, end: int, change: Change, adapter: TensorFile, lengths: torch.Tensor | None
) -> None:
    """Change rows begin to end, in place."""
    if change.low_rank:
        _add(block, begin, end, change.low_rank, adapter)
        if change.low_rank.magnitude:
            magnitude = adapter.values(change.low_rank.magnitude).flatten().float()
            if lengths is not None:
                block.mul_(magnitude / lengths)
            else:
                block.mul_((magnitude[begin:end] / torch.linalg.vector_norm(block, dim=1))[:, None])
    if change.term:
        key, factor = change.term
        block.add_(_flat(adapter.values(key))[begin:end], alpha=factor)
    if change.rows:
        key, indices = change.rows
        rows = adapter.values(key)
        for place, index in enumerate(indices):
            if begin <= index < end:
                block[index - begin] = rows[place]


def _add(block: torch.Tensor, begin: int, end: int, low: LowRank, adapter: TensorFile) -> None:
    """Add rows begin to end of the update."""
    a, b = _flat(adapter.values(low.a)), _flat(adapter.values(low.b))
    left, right = (a[:, begin:end].T, b.T) if low.transposed else (b[begin:end], a)
    block.addmm_(left.float(), right.float(), alpha=low.scale)


def _lengths(source: torch.Tensor, read: Any, low: LowRank, adapter: TensorFile, work: torch.Tensor) -> torch.Tensor:
    """Of the updated weight that is kept as (in, out), the length of each column."""
    squares = torch.zeros(source.shape[1])
    for begin in range(0, len(source), len(work)):
        end = min(begin + len(work), len(source))
        block = work[: end - begin]
        block.copy_(read(begin, end) if read else source[begin:end])
        _add(block, begin, end, low, adapter)
        squares += block.square_().sum(0)
    return squares.sqrt_()


@dataclass(frozen=True)
class FourBit:
    """How bitsandbytes made the 4-bit weights that an adapter was trained on.

    They are made anew from the base, on the kind of device that a base is loaded onto here: a GPU if there is one. GPU and
    CPU kernels may put a value that lies halfway between two of the sixteen to different sides.
    """

    quant_type: str
    """nf4 or fp4."""
    double_quant: bool
    """The blocks' scales are quantised too."""
    dtype: torch.dtype
    """Precision that the base was quantised from, and that it is dequantised to."""
    blocksize: int = 64

    def quantize(self, weight: torch.Tensor, many: int) -> Packed:
        """The 4-bit form of a weight, made some rows at a time: half a byte a value, and the scales.

        Args:
            weight: (rows, width).
            many: rows at a time; a multiple of 64, so that no block of values lies across two pieces.
        """
        from bitsandbytes import functional

        device = "cuda" if torch.cuda.is_available() else "cpu"
        pieces, scales = [], []
        for rows in weight.split(many):
            given = rows.to(device, self.dtype).contiguous()
            packed, state = functional.quantize_4bit(given, blocksize=self.blocksize, quant_type=self.quant_type)
            pieces.append(packed)
            scales.append(state.absmax)
        absmax = torch.cat(scales)
        if self.double_quant:  # as quantize_4bit does it, over all of the weight: its mean is of all blocks
            offset = absmax.mean()
            absmax = functional.dequantize_blockwise(*functional.quantize_blockwise(absmax - offset, blocksize=256))
            absmax = absmax.float() + offset
        return Packed(self, pieces, absmax, many, weight.shape[1])


@dataclass(frozen=True)
class Packed:
    """A weight in 4 bits."""

    how: FourBit
    pieces: list[torch.Tensor]
    absmax: torch.Tensor
    many: int
    """Rows of a piece."""
    width: int

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """What rows begin to end stand for; they must be one piece."""
        from bitsandbytes import functional

        first = begin * self.width // self.how.blocksize
        count = -(-(end - begin) * self.width // self.how.blocksize)
        state = functional.QuantState(
            absmax=self.absmax[first : first + count].contiguous(),
            shape=torch.Size((end - begin, self.width)),
            dtype=self.how.dtype,
            blocksize=self.how.blocksize,
            code=functional.get_4bit_type(self.how.quant_type, device=self.absmax.device),
            quant_type=self.how.quant_type,
        )
        return functional.dequantize_4bit(self.pieces[begin // self.many], state).cpu()
