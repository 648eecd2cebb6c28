"""What a search asks of the engine's thread, and how far that has come."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from lora_cot.engines.base import Ask, Candidate
from lora_cot.engines.batch import Batch, Job
from lora_cot.engines.local import Encodings, LocalEngine, Options
from lora_cot.serving.tickets import CancelledError, Ticket


class Call:
    """Something a search waits for."""

    def __init__(self, ticket: Ticket, engine: LocalEngine):
        self.ticket, self.engine = ticket, engine
        self.future: Future[Any] = Future()

    def cancel(self) -> None:
        """Nobody waits for the search any more."""
        self.fail(CancelledError())

    def fail(self, error: BaseException) -> None:
        """The search gets the error."""
        if not self.future.done():
            self.future.set_exception(error)


class Reading(Call):
    """Prompts to read, or to weigh options after."""

    def __init__(self, ticket: Ticket, engine: LocalEngine, prompts: Encodings, options: Options | None = None):
        super().__init__(ticket, engine)
        self.options = options
        self._prompts, self._taken = prompts, 0
        self._found: list[Any] = []

    @property
    def kind(self) -> Hashable:
        """Prompts can be read together where this is equal."""
        return self.engine.reader, self.options

    @property
    def left(self) -> int:
        """Prompts that were not taken yet."""
        return len(self._prompts.keys) - self._taken

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.future.done()

    def take(self, tokens: int) -> Encodings:
        """The next prompts, about so many tokens: at least one."""
        begin = self._taken
        while self._taken < len(self._prompts.keys):
            tokens -= self._prompts.lengths[self._taken]
            if tokens < 0 and self._taken > begin:
                break
            self._taken += 1
        return self._prompts.part(begin, self._taken)

    def add(self, found: Sequence[Any]) -> None:
        """What came of the prompts that were taken."""
        self._found += found
        if not self.left and not self.future.done():
            self.future.set_result(self._found)


class Extension(Call):
    """Candidates to draw. An ask joins the batch in parts, as rows become free."""

    def __init__(
        self, ticket: Ticket, engine: LocalEngine, asks: Sequence[Ask], listen: Callable[[Sequence[int]], None] | None
    ):
        super().__init__(ticket, engine)
        self.key = engine.reader
        self.jobs: list[Job] = []
        self._listen, self._heard = listen, 0
        self._asks = asks
        self._waiting = [(number, place) for number, ask in enumerate(asks) for place in range(len(ask.seeds))]
        self._places: dict[Job, tuple[int, int]] = {}
        self._found: list[dict[int, Candidate]] = [{} for _ in asks]

    @property
    def left(self) -> int:
        """Candidates that have no row yet."""
        return len(self._waiting)

    @property
    def rows(self) -> int:
        """Candidates that decode."""
        return sum(len(job.rows) - len(job.candidates) for job in [*self.jobs])

    def join(self, batch: Batch, count: int) -> None:
        """The next so many candidates get a row."""
        joining, self._waiting = self._waiting[:count], self._waiting[count:]
        for number in sorted({number for number, _ in joining}):
            places = [place for which, place in joining if which == number]
            ask = self._asks[number]
            job = batch.add(replace(ask, seeds=[ask.seeds[place] for place in places]))
            self._places[job] = number, places[0]
            self.jobs.append(job)

    def collect(self) -> int:
        """Take what has ended; returns the number of tokens drawn for it."""
        if self._listen is not None and self.jobs and len(ids := self.jobs[0].rows[0].ids) > self._heard:
            self._heard = len(ids)
            self._listen(ids)
        tokens = 0
        for job in [job for job in self.jobs if job.done]:
            number, first = self._places.pop(job)
            self._found[number].update({first + place: candidate for place, candidate in job.candidates.items()})
            tokens += sum(candidate.tokens for candidate in job.candidates.values())
            self.jobs.remove(job)
            job.rows.clear()  # rows know their job: a cycle would hold what was read until a collector finds it
        if not self.jobs and not self._waiting and not self.future.done():
            asks = zip(self._asks, self._found, strict=True)
            self.future.set_result([[found[place] for place in range(len(ask.seeds))] for ask, found in asks])
        return tokens
