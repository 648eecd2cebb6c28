"""What a search asks of the engine's thread, and how far that has come."""

from __future__ import annotations

import math
import time
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
        self.arrived = time.monotonic()

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
    def tokens(self) -> int:
        """Of the next prompt."""
        return self._prompts.lengths[self._taken]

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.future.done()

    def end_late(self, now: float) -> None:
        """Once the ticket's time is over, what was not read has no state, and of its options nothing is known."""
        if self.ticket.deadline is not None and now >= self.ticket.deadline and self.left:
            nothing = None if self.options is None else [math.nan] * len(self.options.firsts)
            missing = [nothing] * self.left
            self._taken += self.left
            self.add(missing)

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
        self._listen, self._heard = listen, list[int]()
        self._asks = asks
        self._waiting = [(number, place) for number, ask in enumerate(asks) for place in range(len(ask.seeds))]
        self._places: dict[Job, tuple[int, list[int]]] = {}
        self._found: list[dict[int, Candidate]] = [{} for _ in asks]
        self._lost: BaseException | None = None

    @property
    def left(self) -> int:
        """Candidates that have no row yet."""
        return len(self._waiting)

    @property
    def rows(self) -> int:
        """Candidates that decode."""
        return sum(len(job.rows) - len(job.candidates) for job in [*self.jobs])

    def waiting(self, place: int) -> Ask:
        """What the candidate at a place of those without a row is of."""
        return self._asks[self._waiting[place][0]]

    def end_late(self, now: float) -> None:
        """Candidates whose time is over before they have a row end as they are; so do those of a prompt that was not read."""
        left = []
        for number, place in self._waiting:
            ask = self._asks[number]
            if ask.state is None or (ask.deadline is not None and now >= ask.deadline):
                self._found[number][place] = Candidate("", 0, 0.0, "deadline", ask.state)
            else:
                left.append((number, place))
        self._waiting = left

    def join(self, batch: Batch, count: int) -> None:
        """The next so many candidates get a row."""
        joining, self._waiting = self._waiting[:count], self._waiting[count:]
        for number in sorted({number for number, _ in joining}):
            places = [place for which, place in joining if which == number]
            ask = self._asks[number]
            job = batch.add(replace(ask, seeds=[ask.seeds[place] for place in places]))
            self._places[job] = number, places
            self.jobs.append(job)

    def begin_again(self, error: BaseException) -> bool:
        """After its rows were lost: those without an end wait for others, once. The same seeds draw the same tokens.

        Args:
            error: that they were lost by.

        Returns:
            Whether they do; the second time they do not.
        """
        if self._lost is not None:
            return False
        self._lost = error
        again = []
        for job in self.jobs:
            number, places = self._places[job]
            again += [(number, place) for at, place in enumerate(places) if at not in job.candidates]
            self._end(job)
        self.jobs, self._waiting = [], again + self._waiting
        return True

    def let_go(self) -> None:
        """Hold no rows any more: rows know their job, and a cycle would hold what was read until a collector finds it."""
        for job in self.jobs:
            job.rows.clear()
        self.jobs = []

    def collect(self) -> int:
        """Take what has ended; returns the number of tokens drawn for it.

        Raises:
            Exception: whatever the listener raises; or its text was begun again, and comes out otherwise than it was told.
        """
        if self._listen is not None and self.jobs:
            self._tell(self._listen, self.jobs[0].rows[0].ids)
        tokens = 0
        for job in [job for job in self.jobs if job.done]:
            tokens += self._end(job)
            self.jobs.remove(job)
        if not self.jobs and not self._waiting and not self.future.done():
            asks = zip(self._asks, self._found, strict=True)
            self.future.set_result([[found[place] for place in range(len(ask.seeds))] for ask, found in asks])
        return tokens

    def _tell(self, listen: Callable[[Sequence[int]], None], ids: Sequence[int]) -> None:
        told = self._heard[: len(ids)]
        if self._lost is not None and (list(ids[: len(told)]) != told or (self.jobs[0].done and len(ids) < len(self._heard))):
            raise self._lost  # batches of another size may round differently
        if len(ids) > len(self._heard):
            self._heard = list(ids)
            listen(ids)

    def _end(self, job: Job) -> int:
        """Take the candidates of a job that will have no more; returns their tokens."""
        number, places = self._places.pop(job)
        self._found[number].update({places[at]: candidate for at, candidate in job.candidates.items()})
        job.rows.clear()  # see `let_go`
        return sum(candidate.tokens for candidate in job.candidates.values())
