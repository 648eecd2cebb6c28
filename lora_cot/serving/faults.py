"""What the model's failures say of the engine, and of which part of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Hashable
from time import monotonic as now

import torch

from lora_cot.errors import LoraCotError

MOST = 3
"""Failures of one kind in a row after which what failed counts as broken."""
PAUSE_SECONDS = 5.0
"""Between two requests by which something broken is tried."""


class Faults:
    """Failures in a row, of each adapter and each kind of work apart: what goes well in one says nothing of another.

    Who reads (`LocalEngine.reader`) is refused once a kind of its work fails again and again, but for a trial now and then:
    else nothing could ever show that the cause is gone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[Hashable, Hashable]] = Counter()
        self._tried: dict[Hashable, float] = {}
        """When readers that are refused were tried, or began to be refused."""

    @property
    def are_many(self) -> bool:
        """Whether some kind of work fails again and again."""
        with self._lock:
            return bool(self._broken())

    def tell(self, reader: Hashable, work: Hashable, error: Exception | None) -> None:
        """How work of a kind ended. An error that says what is wrong with a request says nothing of the engine."""
        with self._lock:
            if error is None:
                self._counts.pop((reader, work), None)
            elif not isinstance(error, LoraCotError):
                self._counts[reader, work] += 1
                if self._counts[reader, work] == MOST:
                    self._tried[reader] = now()

    def refuses(self, readers: Collection[Hashable]) -> bool:
        """Whether a request that these are for has to be refused now."""
        with self._lock:
            return any(now() - self._tried[reader] < PAUSE_SECONDS for reader in self._broken() & {*readers})

    def is_trial(self, readers: Collection[Hashable]) -> bool:
        """Whether a request that is not refused is a trial; if so, there is none other for a while."""
        with self._lock:
            tried = self._broken() & {*readers}
            self._tried |= dict.fromkeys(tried, now())
            return bool(tried)

    def forget(self, readers: Collection[Hashable]) -> None:
        """A trial was answered."""
        with self._lock:
            for reader, work in [*self._counts]:
                if reader in readers:
                    del self._counts[reader, work]

    def _broken(self) -> set[Hashable]:
        return {reader for (reader, _), count in self._counts.items() if count >= MOST}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. Torch has an error of its own for its own CUDA memory only."""
    told = ("DefaultCPUAllocator", "CUDA error: out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in told)


def is_lost(error: BaseException) -> bool:
    """Whether the accelerator is lost to this process: after such an error it computes nothing more."""
    is_told = isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))
    return is_told and not is_out_of_memory(error)
