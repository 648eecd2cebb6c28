"""All random numbers that training draws from, as they stand at some moment."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class RandomState:
    """The states of Python's, numpy's, torch's and this process's GPU's generators."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    cuda: torch.Tensor | None

    @classmethod
    def now(cls) -> RandomState:
        """As they are."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Put them back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


@contextmanager
def undisturbed(state: RandomState | None = None) -> Iterator[None]:
    """Whatever is drawn inside, outside nothing was; inside begins at a state, if one is given."""
    before = RandomState.now()
    if state is not None:
        state.restore()
    try:
        yield
    finally:
        before.restore()
