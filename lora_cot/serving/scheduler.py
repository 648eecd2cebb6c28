"""One thread runs the model for all requests: their candidates decode as one batch, a token at each step.

A request's search is ordinary code in a thread of its own; each thing it asks of its engine (`engine.py`) is a `Call`
here, and it waits for the answer. Between two steps, rows of other requests join, prompts are read, bounded in tokens,
and rows that nobody waits for leave.

Fair: requests take rows in turn, one each time, and the last quarter of the batch is kept for those that have none yet;
prompts are read in turn too. So a search with many candidates does not keep others waiting for its end.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from lora_cot.engines.base import Ask, Candidate
from lora_cot.engines.batch import Batch
from lora_cot.engines.cache import bytes_at_rest
from lora_cot.engines.decoder import State
from lora_cot.engines.local import Encodings, LocalEngine, Options
from lora_cot.serving.calls import Call, Extension, Reading
from lora_cot.serving.faults import Faults, is_lost, is_out_of_memory
from lora_cot.serving.inbox import Inbox
from lora_cot.serving.room import Load, Room, RowLimit
from lora_cot.serving.tickets import Ticket
from lora_cot.serving.turns import shares


class Scheduler:
    """The thread that owns the model. Its methods may be called from any thread."""

    def __init__(self, max_rows: int = 64, prefill_tokens: int = 4096, kv_bytes: int | None = None):
        """
        Args:
            max_rows: candidates that decode at once, of all requests.
            prefill_tokens: of prompts that are read between two steps; a single longer one is read at once.
            kv_bytes: that keys and values may take, see `room.py`; None: any number. It is set once a model is loaded.
        """
        self.limit, self.prefill_tokens, self.kv_bytes = RowLimit(max_rows), prefill_tokens, kv_bytes
        self.inbox = Inbox()
        self._readings: deque[Reading] = deque()
        self._extensions: deque[Extension] = deque()
        self._batches: dict[Hashable, tuple[LocalEngine, Batch]] = {}
        self._prompt_bytes = 0.0
        """Of a prompt's token, at most, as far as is known."""
        self.faults = Faults()
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
        return self.is_running and not self.faults.are_many

    @property
    def is_running(self) -> bool:
        """Whether it can answer anything at all, ever again."""
        return self._broken is None and self._thread.is_alive()

    @property
    def load(self) -> Load:
        """What there is to do now."""
        rows = sum(extension.rows for extension in [*self._extensions])
        left = sum(extension.left for extension in [*self._extensions])
        left += sum(reading.left for reading in [*self._readings])
        row_bytes = sum(batch.bytes for _, batch in [*self._batches.values()])
        return Load(rows, left, self.limit.now, row_bytes, bytes_at_rest())

    def read(self, ticket: Ticket, engine: LocalEngine, prompts: Encodings) -> list[State | None]:
        """States of prompts; None for those that were not read by the ticket's deadline.

        Raises:
            CancelledError: the ticket was cancelled.
        """
        return self._wait(Reading(ticket, engine, prompts))

    def weigh(self, ticket: Ticket, engine: LocalEngine, prompts: Encodings, options: Options) -> list[list[float]]:
        """Of each prompt the log-probability of each option; nan for those that were not read by the ticket's deadline."""
        return self._wait(Reading(ticket, engine, prompts, options))

    def extend(
        self, ticket: Ticket, engine: LocalEngine, asks: Sequence[Ask], listen: Callable[[Sequence[int]], None] | None = None
    ) -> list[list[Candidate]]:
        """Candidates; `listen` is told the tokens of the first so far, after each step that adds one."""
        return self._wait(Extension(ticket, engine, asks, listen))

    def wake(self) -> None:
        """See at once that a ticket was cancelled."""
        self.inbox.put(None)

    def stop(self) -> None:
        """End the thread; who waits is told."""
        self._stopping = True
        self.wake()
        self._thread.join()

    def _wait(self, call: Call) -> Any:
        call.ticket.check()
        if self._broken is not None or self._stopping:
            raise self._broken or RuntimeError("the engine was stopped")
        self.inbox.put(call)
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
            while not self._stopping and self._broken is None:
                self._take()
                self._end_some()
                self._read_some()
                self._admit()
                self._step()
            self._fail_all(self._broken or RuntimeError("the engine was stopped"))
        except BaseException as error:  # a fault of this file: nothing may wait for ever
            self._broken = error
            self._fail_all(error)
            raise

    def _take(self) -> None:
        """New calls; without any work, wait for one."""
        for call in self.inbox.take(idle=not self._readings and not self._extensions):
            if isinstance(call, Reading):
                self._readings.append(call)
            elif isinstance(call, Extension):
                self._extensions.append(call)

    def _fail_all(self, error: BaseException) -> None:
        for one in (*self.inbox.take(idle=False), *self._readings, *self._extensions):
            one.fail(error)

    def _end_some(self) -> None:
        """What nobody waits for any more leaves, and what waits when its time is over ends as it is."""
        now = time.monotonic()
        for extension in [*self._extensions]:
            if extension.ticket.is_cancelled:
                self._leave(extension)
                extension.cancel()
            extension.end_late(now)
        for reading in [*self._readings]:
            if reading.ticket.is_cancelled:
                reading.cancel()
            reading.end_late(now)
            if reading.is_done:
                self._readings.remove(reading)

    def _leave(self, extension: Extension) -> None:
        """Its rows leave their batch."""
        self._extensions.remove(extension)
        if extension.jobs and extension.key in self._batches:
            self._on(extension.key, lambda batch: batch.drop(*extension.jobs))
        extension.let_go()

    def _on(self, key: Hashable, work: Callable[[Batch], object]) -> bool:
        """Do something with a batch, the only way to it; returns whether it went well. If not, the batch is lost."""
        try:
            with self._batches[key][0].running():
                work(self._batches[key][1])
        except Exception as error:  # whatever a model raises is the failure of its rows, not the server's
            self._lose(key, error)
            return False
        return True

    def _lose(self, key: Hashable, error: Exception) -> None:
        """Who has rows there fails; where memory ran out, they begin once more, in a smaller batch."""
        del self._batches[key]
        mine = [extension for extension in self._extensions if extension.key == key and extension.jobs]
        if is_lost(error):
            self._broken = error
        if is_out_of_memory(error):
            error.__traceback__ = None  # it holds what did not fit
            self.limit.shrink(sum(extension.rows for extension in mine))
            mine = [extension for extension in mine if not extension.begin_again(error)]
        if mine or not is_out_of_memory(error):  # what fits a smaller batch is no fault
            self.faults.tell(key, "step", error)
        for extension in mine:
            extension.let_go()
            extension.fail(error)
        if is_out_of_memory(error):
            torch.cuda.empty_cache()

    def _room(self) -> Room:
        """The memory there is beside what is held."""
        room = Room(self.kv_bytes, 0 if self.kv_bytes is None else bytes_at_rest())
        for key, (_, batch) in self._batches.items():
            for ask in batch.asks:
                room.add(key, ask)
        return room

    def _readable(self) -> int:
        """Tokens of prompts that may be read now: without rows that will leave, there is nothing to wait for."""
        room = self._room()
        if room.left is None or not self._prompt_bytes:
            return self.prefill_tokens
        tokens, wanted = int(room.left / self._prompt_bytes), self._readings[0].tokens
        return min(self.prefill_tokens, tokens) if tokens >= wanted else 0 if room.rows else wanted

    def _read_some(self) -> None:
        """Read prompts of like kind, of each call in turn, up to the bound."""
        if not self._readings or (left := self._readable()) <= 0:
            return
        kind = self._readings[0].kind
        taken: list[tuple[Reading, Encodings]] = []
        for reading in [one for one in self._readings if one.kind == kind]:
            if taken and reading.tokens > left:
                break
            part = reading.take(left)
            left -= sum(part.lengths)
            taken.append((reading, part))
        error = self._read(taken)
        if error is not None and len(taken) > 1:  # one of them is at fault: only that one fails
            errors = [self._read([one]) for one in taken]
            error = None if None in errors else errors[0]
        if error is None or not is_out_of_memory(error):  # one prompt that is too long says nothing of the engine
            self.faults.tell(taken[0][0].engine.reader, kind, error)
        for reading, _ in taken:  # to the end of the line
            self._readings.remove(reading)
            if not reading.is_done:
                self._readings.append(reading)

    def _read(self, group: Sequence[tuple[Reading, Encodings]]) -> Exception | None:
        """Why it could not be read, if so; a single call that cannot fails."""
        engine, options = group[0][0].engine, group[0][0].options
        try:
            parts = [part for _, part in group]
            found: list[Any] = engine.read(parts) if options is None else engine.weigh(parts, options)
        except Exception as error:  # whatever a model raises is its request's failure, not the server's
            if is_lost(error):
                self._broken = error
            if is_out_of_memory(error):
                error.__traceback__ = None
                torch.cuda.empty_cache()
            if len(group) == 1:
                group[0][0].fail(error)
            return error
        for (reading, part), mine in zip(group, found, strict=True):
            if options is None:
                sizes = [state.root.kv.bytes / length for state, length in zip(mine, part.lengths, strict=True)]
                self._prompt_bytes = max(self._prompt_bytes, *sizes)
            reading.add(mine)
        return None

    def _admit(self) -> None:
        """Rows that join."""
        self.limit.recover()
        if not (waiting := [extension for extension in self._extensions if extension.left]):
            return
        for extension, count in shares(waiting, self._room(), self.limit.now).items():
            if extension.key not in self._batches:
                self._batches[extension.key] = extension.engine, extension.engine.batch()
            extension.join(self._batches[extension.key][1], count)

    def _step(self) -> None:
        begin = time.perf_counter()
        for key in [*self._batches]:
            if self._on(key, Batch.step):
                self.faults.tell(key, "step", None)
                if self._batches[key][1].is_empty:
                    del self._batches[key]
        self._collect()
        self._extensions = deque(extension for extension in self._extensions if not extension.future.done())
        self._extensions.rotate(-1)
        self.step_seconds += time.perf_counter() - begin

    def _collect(self) -> None:
        """What has ended. Apart from the step: an error's traceback holds its frame, which must hold no call."""
        for extension in [*self._extensions]:
            try:
                self.tokens += extension.collect()
            except Exception as error:  # of who listens
                self._leave(extension)
                extension.fail(error)
