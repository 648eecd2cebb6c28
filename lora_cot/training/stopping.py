"""SIGTERM and Ctrl-C: training is told at its next safe place, on all ranks at the same one, and saves before it ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.sharedctypes import RawValue
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from lora_cot.errors import Problem, StoppedError


class Stopper(TrainerCallback):
    """Ends training, by an error, once a SIGTERM or SIGINT has come to any rank: before a step, inside an accumulation, or
    between batches of an evaluation. A second Ctrl-C ends it at once.

    Ranks agree over the CPU, so that no GPU is waited for.
    """

    def __init__(self, patience: timedelta) -> None:
        """
        Args:
            patience: for which ranks wait for each other.
        """
        self._asked = 0
        several = dist.is_initialized() and dist.get_world_size() > 1
        self._group: Any = dist.new_group(backend="gloo", timeout=patience) if several else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The signals ask training to stop; afterwards they end the process as before."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _: Any) -> None:
        self._asked = number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def most(self, here: int) -> int:
        """The largest of a number over all ranks; called by all of them at the same place."""
        if self._group is None:
            return here
        value = torch.tensor(here)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self._group)
        return int(value)

    def any(self, here: bool) -> bool:
        """Whether something is so on any rank; called by all of them at the same place."""
        return bool(self.most(int(here)))

    def check(self) -> None:
        """Called by all ranks at the same place.

        Raises:
            StoppedError: one of them was asked to stop.
        """
        if number := self.most(self._asked):
            raise StoppedError(Problem("", f"stopped by {signal.Signals(number).name}"), 128 + number)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the step before was logged, evaluated and saved."""
        self.check()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Inside an accumulation."""
        self.check()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Between batches of an evaluation."""
        self.check()


class Workers:
    """Called in each of a DataLoader's workers as it begins: while it trains, SIGTERM is the trainer's, which needs them.

    A scheduler signals every process. To ignore it for good would not do: a process that ends sends it to its children
    and waits for them.
    """

    def __init__(self) -> None:
        self._are_free = RawValue("b", 1)

    @contextmanager
    def needed(self) -> Iterator[None]:
        """While training runs."""
        self._are_free.value = 0
        try:
            yield
        finally:
            self._are_free.value = 1

    def __call__(self, worker: int) -> None:
        """In worker number `worker`."""
        signal.signal(signal.SIGTERM, self._hear)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to every process

    def _hear(self, *_: Any) -> None:
        if self._are_free.value:
            os._exit(0)
