"""What watches a training from inside: losses and weights that are not finite, ranks that fail alone, places that hang."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from lora_cot.checkpoints import store
from lora_cot.errors import Problem, TrainingError
from lora_cot.training.heartbeat import Heartbeat
from lora_cot.training.stopping import Stopper, Workers

BatchIds = Callable[[int], Sequence[str]]
"""Number of a batch, of this rank in this epoch, to the ids of its samples."""


class Guards:
    """One for each trainer; all ranks call its methods in the same order."""

    def __init__(self, run: Path, root: Path, hang_after: float, ids: BatchIds, patience: timedelta):
        """
        Args:
            run: the run's folder.
            root: its checkpoints.
            hang_after: seconds in one place, after which that is told.
            ids: of the samples of a batch.
            patience: for which ranks wait for each other.
        """
        self.stopper, self.workers = Stopper(patience), Workers()
        self.step = 0
        """Optimizer steps done."""
        self._root, self._ids = root, ids
        self._pulse = Heartbeat(run, PartialState().process_index, hang_after, ids)
        self._read = self._computed = 0
        self._losses: list[torch.Tensor] = []

    @contextmanager
    def on_duty(self) -> Iterator[None]:
        """While training runs."""
        with self._pulse, self.stopper.listening(), self.workers.needed():
            yield

    def begin_epoch(self, batches: int) -> None:
        """So many batches of it are done already."""
        self._read = self._computed = batches

    def at(self, place: str) -> None:
        """This rank is in a place where it works on no batch."""
        self._pulse.at(place, self.step)

    def between_answers(self) -> None:
        """An evaluation asks questions; it may be stopped here."""
        self.at("an evaluation")
        self.stopper.check()

    def reading(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; which of them is being read is known."""
        while True:
            self._pulse.at("reading a batch", self.step, self._read)
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._read += 1
            yield batch

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Forward and backward of one batch."""
        self._pulse.at("the forward pass", self.step, self._computed)
        yield
        self._computed += 1

    def check_loss(self, loss: torch.Tensor, is_last: bool) -> None:
        """Called with each batch's loss before its backward pass; judged once a step, while the weights are still good.

        Args:
            loss: of one batch.
            is_last: of the step.

        Raises:
            TrainingError: on all ranks, if a loss of this step is not finite on any, naming the samples.
        """
        self._pulse.at("the backward pass", self.step, self._computed)
        self._losses.append(loss.detach())
        if not is_last:
            return
        first = self._computed + 1 - len(self._losses)
        values, self._losses = torch.stack(self._losses).tolist(), []
        bad = [(first + n, value) for n, value in enumerate(values) if not math.isfinite(value)]
        if self.stopper.any(bool(bad)):
            own = [f"{value} on {', '.join(self._ids(number))}" for number, value in bad]
            what = f"a loss is not finite after {self.step} steps: {'; '.join(gather_object(own))}"
            raise TrainingError(Problem("training", what, f"{self.kept()}; lower the learning rate, or look at these samples"))

    def check_weights(self, model: torch.nn.Module) -> None:
        """See that nothing that is trained has become anything but numbers.

        Raises:
            TrainingError: on all ranks, if it has on any.
        """
        trained = ((n, getattr(p, "ds_tensor", p)) for n, p in model.named_parameters() if p.requires_grad)
        bad = [name for name, tensor in trained if not tensor.isfinite().all()]
        if self.stopper.any(bool(bad)):
            what = f"weights are not finite after {self.step} steps: {', '.join(bad[:3]) or 'on another rank'}"
            raise TrainingError(Problem("training", what, f"{self.kept()}; lower the learning rate"))

    def on_all(self, action: Callable[[], Any] | None, doing: str, alone: bool = False) -> None:
        """Do something on this rank, if there is something, and go on only if it went well on all.

        Args:
            action: what is done.
            doing: what it is called.
            alone: if it goes wrong, do not wait for the others, who may be waiting inside it.

        Raises:
            TrainingError: it did not go well.
        """
        problem = None
        try:
            if action is not None:
                action()
        except Exception as error:  # torch and safetensors have errors of their own for a full disk
            problem = " ".join(str(error).split())[:300] or type(error).__name__
        if (problem is not None and alone) or self.stopper.any(problem is not None):
            what = f"{doing} failed after step {self.step}: {problem or 'on another rank'}"
            remedy = f"{self.kept()}; make room if the disk is full, and start the same command again: it goes on"
            raise TrainingError(Problem(str(self._root), what, remedy))

    def kept(self) -> str:
        """What a run that ends now has saved."""
        newest = max(store.steps(self._root), default=None)
        return "nothing was saved yet" if newest is None else f"the checkpoint of step {newest} is kept"
