"""What the model's failures say of the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import torch

from lora_cot.errors import LoraCotError

MOST = 3
"""Failures of one kind in a row after which the engine counts as broken."""


class Faults:
    """Failures in a row, of each kind of work apart: what goes well in one adapter says nothing of another."""

    def __init__(self) -> None:
        self._counts: Counter[Hashable] = Counter()

    @property
    def are_many(self) -> bool:
        """Whether some kind of work fails again and again."""
        return any(count >= MOST for count in [*self._counts.values()])

    def tell(self, work: Hashable, error: Exception | None) -> None:
        """How work of a kind ended. An error that says what is wrong with a request says nothing of the engine."""
        if error is None:
            self._counts.pop(work, None)
        elif not isinstance(error, LoraCotError):
            self._counts[work] += 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. Torch has an error of its own for its own CUDA memory only."""
    told = ("DefaultCPUAllocator", "CUDA error: out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in told)


def is_lost(error: BaseException) -> bool:
    """Whether the accelerator is lost to this process: after such an error it computes nothing more."""
    is_told = isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))
    return is_told and not is_out_of_memory(error)
