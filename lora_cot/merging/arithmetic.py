"""A merged tensor, some rows at a time: sums in float32, rounded once."""

from __future__ import annotations

import threading
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

import torch

from lora_cot.errors import MergeError, Problem
from lora_cot.merging.checkpoint import FLOATS, TensorFile
from lora_cot.merging.deltas import Change, LowRank
from lora_cot.merging.plan import Step

BITES = 1 << 16
"""Values that are quantised at once; a multiple of any block of values that shares a scale."""
BLOCK = 1 << 20
"""Values that are worked on at once: 4 MiB in float32, about what a processor's cache holds."""


@dataclass(frozen=True)
class Sum:
    """A merged tensor before its rows are worked out."""

    step: Step
    adapter: TensorFile
    source: torch.Tensor
    """(rows, width) what the change is made to, as it lies in its file."""
    many: int
    """Rows of a block."""
    packed: Packed | None
    """The 4-bit form that takes the source's place."""
    lengths: torch.Tensor | None
    """(width,) of the updated weight that is kept as (in, out), the length of each column; None if nothing asks for it."""

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First row of each block, and the one after its last."""
        return [(begin, min(begin + self.many, len(self.source))) for begin in range(0, len(self.source), self.many)]

    def rows(self, begin: int, end: int) -> tuple[torch.Tensor, int]:
        """Merged rows begin to end, a block, in the tensor's own type; the next call in the same thread overwrites them.

        Returns:
            The rows; and how many of their values are other than what was merged onto.

        Raises:
            MergeError: a sum is not finite.
        """
        block = _read(self.source, self.packed, begin, end)
        before = self._before(block, begin, end)
        _apply(block, begin, end, self.step.change or Change(), self.adapter, self.lengths)
        out = _buffer("out", end - begin, block.shape[1], FLOATS[self.step.dtype]).copy_(block)
        if out.numel() and not all(torch.isfinite(bound) for bound in out.aminmax()):  # isfinite(out) takes 30 times as long
            what = f"the merged tensor {self.step.name} holds values that are not finite"
            raise MergeError(Problem(str(self.adapter.path), what, "the adapter's update is too large for the base's type"))
        if before is None:
            return out, out.numel()
        differ = torch.ne(out, before, out=_buffer("differ", len(out), out.shape[1], torch.bool))
        return out, int(torch.count_nonzero(differ))

    def _before(self, block: torch.Tensor, begin: int, end: int) -> torch.Tensor | None:
        """Rows begin to end of what is merged onto, in the tensor's own type; None if the adapter alone has them."""
        if self.packed:
            return _buffer("before", len(block), block.shape[1], FLOATS[self.step.dtype]).copy_(block)
        return _flat(_of_base(self.step))[begin:end] if self.step.file else None

    def unmerged(self, places: torch.Tensor) -> torch.Tensor:
        """(places, width) what these rows were before any change, in float32."""
        pieces = [place // self.many * self.many for place in places.tolist()]
        ends = [min(begin + self.many, len(self.source)) for begin in pieces]
        found = [
            _read(self.source, self.packed, begin, end)[place - begin].clone()
            for begin, end, place in zip(pieces, ends, places.tolist(), strict=True)
        ]
        return torch.stack(found)


def prepare(step: Step, adapter: TensorFile, four_bit: FourBit | None, pool: Executor) -> Sum:
    """What a merged tensor's rows are worked out from.

    Args:
        step: what happens to the tensor.
        adapter: its tensors.
        four_bit: how a quantised tensor was quantised.
        pool: does what has to be known of all rows before the first.
    """
    change = step.change or Change()
    source = _flat(adapter.values(change.replaced) if change.replaced else _of_base(step))
    many = max(1, BLOCK // max(source.shape[1], 1))
    many = -(-many // 64) * 64 if step.quantized else many  # blocks of quantised values then end where rows end
    packed, lengths, low = None, None, change.low_rank
    if step.quantized and four_bit and not change.replaced:
        packed = four_bit.quantize(source, many, pool)
    plain = Sum(step, adapter, source, many, packed, None)
    if low and low.magnitude and low.transposed:
        squares = pool.map(partial(_squares, plain, low), *zip(*plain.blocks, strict=True))
        lengths = torch.stack(list(squares)).sum(0).sqrt()
    return replace(plain, lengths=lengths)


def _buffer(name: str, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory of this thread, the same each time: taking it anew costs as much as the sums."""
    found = getattr(_own, f"{name}_{dtype}", None)
    if found is None or len(found) < rows * width:
        found = torch.empty(max(BLOCK, rows * width), dtype=dtype)
        setattr(_own, f"{name}_{dtype}", found)
    return found[: rows * width].view(rows, width)


_own = threading.local()


def _read(source: torch.Tensor, packed: Packed | None, begin: int, end: int) -> torch.Tensor:
    """Rows begin to end, before any change, in float32."""
    work = _buffer("work", end - begin, source.shape[1], torch.float32)
    return work.copy_(packed.rows(begin, end) if packed else source[begin:end])


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


def _squares(total: Sum, low: LowRank, begin: int, end: int) -> torch.Tensor:
    """(width,) sums of squares of the updated rows begin to end."""
    block = _read(total.source, total.packed, begin, end)
    _add(block, begin, end, low, total.adapter)
    return block.square_().sum(0)


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

    def quantize(self, weight: torch.Tensor, many: int, pool: Executor) -> Packed:
        """The 4-bit form of a weight, made some rows at a time: half a byte a value, and the scales.

        Args:
            weight: (rows, width).
            many: rows at a time; a multiple of 64, so that no block of values lies across two pieces.
            pool: does the pieces.
        """
        from bitsandbytes import functional

        made = list(pool.map(self._piece, weight.split(many)))
        absmax = torch.cat([scales for _, scales in made])
        if self.double_quant:  # as quantize_4bit does it, over all of the weight: its mean is of all blocks
            offset = absmax.mean()
            absmax = functional.dequantize_blockwise(*functional.quantize_blockwise(absmax - offset, blocksize=256))
            absmax = absmax.float() + offset
        return Packed(self, [packed for packed, _ in made], absmax, many, weight.shape[1])

    def _piece(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from bitsandbytes import functional

        device = "cuda" if torch.cuda.is_available() else "cpu"
        made = []
        flat = rows.reshape(-1)
        for values in flat.split(BITES):  # on a CPU, bitsandbytes makes a dozen copies in float32 of what it is given
            given = values.to(device, self.dtype).contiguous()
            packed, state = functional.quantize_4bit(given, blocksize=self.blocksize, quant_type=self.quant_type)
            made.append((packed, state.absmax))
        return torch.cat([packed for packed, _ in made]), torch.cat([scales for _, scales in made])


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
