"""One thread runs the model for all requests: their candidates decode as one batch, a token at each step.

A request's search is ordinary code in a thread of its own; each thing it asks of its engine (`engine.py`) is a `Call`
here, and it waits for the answer. Between two steps, rows of other requests join, prompts are read, bounded in tokens,
and rows that nobody waits for leave.

Fair: requests take rows in turn, one each time, and the last quarter of the batch is kept for those that have none yet;
prompts are read in turn too. So a search with many candidates does not keep others waiting for its end.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_cot.engines.base import Ask, Candidate
from lora_cot.engines.batch import Batch
from lora_cot.engines.decoder import State
from lora_cot.engines.local import Encodings, LocalEngine, Options
from lora_cot.serving.calls import Call, Extension, Reading
from lora_cot.serving.tickets import Ticket

FAULTS = 3
"""Steps in a row that may fail before the engine counts as broken."""


@dataclass(frozen=True)
class Load:
    """What the engine has to do."""

    rows: int = 0
    """That decode now."""
    waiting: int = 0
    """Rows and prompts that have to wait."""


class Scheduler:
    """The thread that owns the model. Its methods may be called from any thread."""

    def __init__(self, max_rows: int = 64, prefill_tokens: int = 4096):
        """
        Args:
            max_rows: candidates that decode at once, of all requests.
            prefill_tokens: of prompts that are read between two steps; a single longer one is read at once.
        """
        self.max_rows, self.prefill_tokens = max_rows, prefill_tokens
        self._inbox: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._readings: deque[Reading] = deque()
        self._extensions: deque[Extension] = deque()
        self._batches: dict[Hashable, tuple[LocalEngine, Batch]] = {}
        self._faults = 0
        self._broken: BaseException | None = None
        self._stopping = False
        self.tokens = 0
        """Drawn so far."""
        self.step_seconds = 0.0
        """Spent on it."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_healthy(self) -> bool:
        """Whether it can be expected to answer."""
        return self._broken is None and self._faults < FAULTS and self._thread.is_alive()

    @property
    def load(self) -> Load:
        """What there is to do now."""
        rows = sum(extension.rows for extension in [*self._extensions])
        left = sum(extension.left for extension in [*self._extensions])
        return Load(rows, left + sum(reading.left for reading in [*self._readings]))

    def read(self, ticket: Ticket, engine: LocalEngine, prompts: Encodings) -> list[State]:
        """States of prompts.

        Raises:
            CancelledError: the ticket was cancelled.
        """
        return self._wait(Reading(ticket, engine, prompts))

    def weigh(self, ticket: Ticket, engine: LocalEngine, prompts: Encodings, options: Options) -> list[list[float]]:
        """Of each prompt the log-probability of each option."""
        return self._wait(Reading(ticket, engine, prompts, options))

    def extend(
        self, ticket: Ticket, engine: LocalEngine, asks: Sequence[Ask], listen: Callable[[Sequence[int]], None] | None = None
    ) -> list[list[Candidate]]:
        """Candidates; `listen` is told the tokens of the first so far, after each step that adds one."""
        return self._wait(Extension(ticket, engine, asks, listen))

    def wake(self) -> None:
        """See at once that a ticket was cancelled."""
        self._inbox.put(None)

    def stop(self) -> None:
        """End the thread; who waits is told."""
        self._stopping = True
        self.wake()
        self._thread.join()

    def _wait(self, call: Call) -> Any:
        call.ticket.check()
        if self._broken is not None or self._stopping:
            raise self._broken or RuntimeError("the engine was stopped")
        self._inbox.put(call)
        future = call.future
        del call
        try:
            while True:
                try:
                    return future.result(timeout=1.0)
                except TimeoutError:
                    if not self._thread.is_alive() and not future.done():
                        raise RuntimeError("the engine was stopped") from None
        finally:
            del future  # an error's traceback holds this frame, which must not hold the error

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take()
                self._drop_cancelled()
                self._read_some()
                self._admit()
                self._step()
            self._fail_all(RuntimeError("the engine was stopped"))
        except BaseException as error:  # a fault of this file: nothing may wait for ever
            self._broken = error
            self._fail_all(error)
            raise

    def _take(self) -> None:
        """New calls; without any work, wait for one."""
        block = not self._readings and not self._extensions
        while True:
            try:
                call = self._inbox.get(block=block)
            except queue.Empty:
                return
            block = False
            if isinstance(call, Reading):
                self._readings.append(call)
            elif isinstance(call, Extension):
                self._extensions.append(call)

    def _fail_all(self, error: BaseException) -> None:
        while not self._inbox.empty():
            if call := self._inbox.get():
                call.fail(error)
        for one in (*self._readings, *self._extensions):
            one.fail(error)

    def _drop_cancelled(self) -> None:
        for extension in [one for one in self._extensions if one.ticket.is_cancelled]:
            if extension.key in self._batches:
                for job in extension.jobs:
                    self._batches[extension.key][1].drop(job)
                    job.rows.clear()
            self._extensions.remove(extension)
            extension.cancel()
        for reading in [one for one in self._readings if one.ticket.is_cancelled]:
            self._readings.remove(reading)
            reading.cancel()

    def _read_some(self) -> None:
        """Read prompts of like kind, of each call in turn, up to the bound."""
        if not self._readings:
            return
        kind, left = self._readings[0].kind, self.prefill_tokens
        taken: list[tuple[Reading, Encodings]] = []
        for reading in [one for one in self._readings if one.kind == kind]:
            if left <= 0:
                break
            part = reading.take(left)
            left -= sum(part.lengths)
            taken.append((reading, part))
        if not self._read(taken) and len(taken) > 1:  # one of them is at fault: only that one fails
            for one in taken:
                self._read([one])
        for reading, _ in taken:  # to the end of the line
            self._readings.remove(reading)
            if not reading.is_done:
                self._readings.append(reading)

    def _read(self, group: Sequence[tuple[Reading, Encodings]]) -> bool:
        """Whether it could be read; a single call that cannot fails."""
        engine, options = group[0][0].engine, group[0][0].options
        try:
            parts = [part for _, part in group]
            found: list[Any] = engine.read(parts) if options is None else engine.weigh(parts, options)
        except Exception as error:  # whatever a model raises is its request's failure, not the server's
            if len(group) == 1:
                self._spare_memory(error)
                group[0][0].fail(error)
            return False
        for (reading, _), mine in zip(group, found, strict=True):
            reading.add(mine)
        return True

    def _admit(self) -> None:
        """Rows that join: one of each request in turn."""
        free = self.max_rows - sum(extension.rows for extension in self._extensions)
        turn = deque(extension for extension in self._extensions if extension.left)
        shares: Counter[Extension] = Counter()
        while turn and free > 0:
            extension = turn.popleft()
            if extension.rows + shares[extension] and free <= self.max_rows // 4:
                continue
            shares[extension] += 1
            free -= 1
            if extension.left > shares[extension]:
                turn.append(extension)
        for extension, count in shares.items():
            if extension.key not in self._batches:
                self._batches[extension.key] = extension.engine, extension.engine.batch()
            extension.join(self._batches[extension.key][1], count)

    def _step(self) -> None:
        begin = time.perf_counter()
        for key, (engine, batch) in [*self._batches.items()]:
            try:
                with engine.running():
                    batch.step()
                self._faults = 0
            except Exception as error:
                self._faults += 1
                del self._batches[key]
                self._spare_memory(error)
                for extension in self._extensions:
                    if extension.key == key:
                        extension.fail(error)
            else:
                if batch.is_empty:
                    del self._batches[key]
        for extension in self._extensions:
            self.tokens += extension.collect()
        self._extensions = deque(extension for extension in self._extensions if not extension.future.done())
        self._extensions.rotate(-1)
        self.step_seconds += time.perf_counter() - begin

    def _spare_memory(self, error: Exception) -> None:
        """After running out of memory, fewer rows; what was held is given back."""
        if isinstance(error, torch.OutOfMemoryError):
            self.max_rows = max(1, self.max_rows // 2)
            torch.cuda.empty_cache()
