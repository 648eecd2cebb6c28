"""Which samples share a batch: alike in images, of like length, and the same kind on all ranks at every step.

A rank that waits for the others' vision encoder hangs if it has no image itself (ZeRO-3), and a family may compute rows
with and without images in one batch wrongly (Mllama). Padding is wasted work: a batch is as slow as its longest row, so
the samples of a step are shared out by length. Which samples make a step is left to chance: where length tells the kind
of question, steps of one length train worse (on the miniature four stages end at 87 instead of 92 %).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

POOL = 50
"""Steps whose samples are sorted by length together, where steps are made by length."""


class GroupedBatches:
    """Numbers of samples in batches, for a DataLoader's `batch_sampler`.

    A full optimizer step takes `accumulation` runs of `ranks` batches, all of one key. The samples of such a step depend
    only on how many it takes, not on how they are shared among batches and ranks. What is left over of each key comes
    last, in smaller batches; where it cannot be shared evenly among ranks, its first samples occur twice, fewer than
    there are ranks.
    """

    batch_size, drop_last = None, False  # Accelerate then shares out whole batches, of any size

    def __init__(
        self,
        keys: Sequence[Hashable],
        lengths: Sequence[int],
        batch_size: int,
        ranks: int = 1,
        accumulation: int = 1,
        seed: int | None = None,
        by_length: bool = False,
    ):
        """
        Args:
            keys: of each sample; only equal ones share a batch.
            lengths: of each sample, in tokens.
            batch_size: samples a batch at most.
            ranks: batches that are computed at once.
            accumulation: of these, that make one step.
            seed: of the order, another one each epoch; None keeps the order of length.
            by_length: steps of samples of like length, in any order; least padding even where a step is one batch.
        """
        self._keys, self._lengths = list(keys), list(lengths)
        self._at_once, self._ranks, self._accumulation = batch_size * ranks, ranks, accumulation
        self._seed, self._by_length, self._epoch = seed, by_length, 0

    @property
    def sampler(self) -> GroupedBatches:
        """Where Accelerate looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Another order."""
        self._epoch = epoch

    def __len__(self) -> int:
        return sum(-(-count // self._at_once) for count in Counter(self._keys).values()) * self._ranks

    def of_rank(self, rank: int) -> list[list[int]]:
        """One rank's batches of this epoch, in order."""
        return list(self)[rank :: self._ranks]

    def order(self) -> str:
        """A fingerprint of which samples make each step of this epoch, however they are shared among batches and ranks."""
        batches, size = list(self), self._ranks * self._accumulation
        steps = [sorted(itertools.chain(*batches[begin : begin + size])) for begin in range(0, len(batches), size)]
        return hashlib.sha256(json.dumps(steps).encode()).hexdigest()

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps():
            for begin in range(0, len(step), self._at_once):
                together = step[begin : begin + self._at_once]
                missing = -len(together) % self._ranks
                together = together + (together * missing)[:missing]
                for rank in range(self._ranks):
                    yield together[rank :: self._ranks]

    def _steps(self) -> list[list[int]]:
        """Samples of each step; of the full ones that with the most tokens first: if memory runs out, then at once."""
        rng = None if self._seed is None else random.Random(f"{self._seed}-{self._epoch}")
        groups: dict[Hashable, list[int]] = {}
        for number, key in enumerate(self._keys):
            groups.setdefault(key, []).append(number)
        size = self._at_once * self._accumulation
        full: list[list[int]] = []
        rest: list[list[int]] = []
        for numbers in groups.values():
            if rng is not None:
                rng.shuffle(numbers)
            even = len(numbers) - len(numbers) % size
            pool = even if rng is None else POOL * size if self._by_length else size
            for begin in range(0, even, max(pool, 1)):
                alike = self._sorted(numbers[begin : min(begin + pool, even)])
                full += [alike[i : i + size] for i in range(0, len(alike), size)]
            rest += [self._sorted(numbers[even:])] if even < len(numbers) else []
        if rng is not None and full:
            rng.shuffle(full)
            largest = max(range(len(full)), key=lambda i: len(full[i]) * self._lengths[full[i][0]])
            full.insert(0, full.pop(largest))
        return full + rest

    def _sorted(self, numbers: list[int]) -> list[int]:
        return sorted(numbers, key=self._lengths.__getitem__, reverse=True)
