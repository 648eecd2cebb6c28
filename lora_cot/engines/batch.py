"""Rows that decode together: candidates of many asks, which join and leave at any step."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lora_cot.engines.base import Ask, Candidate, Ended
from lora_cot.engines.decoder import Decoder, Rows, State
from lora_cot.engines.sampling import draw
from lora_cot.engines.texts import TAIL, Texts


@dataclass(eq=False)
class Row:
    """One candidate while it decodes."""

    job: Job
    number: int
    """Among the job's candidates."""
    draws: random.Random
    ids: list[int] = field(default_factory=list)
    """Tokens drawn so far."""
    logprob: float = 0.0


@dataclass(eq=False)
class Job:
    """An ask in a batch."""

    ask: Ask
    rows: list[Row] = field(default_factory=list)
    candidates: dict[int, Candidate] = field(default_factory=dict)
    """By number, as they end."""
    began: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> bool:
        """All candidates have ended."""
        return len(self.candidates) == len(self.ask.seeds)


class Batch:
    """Asks that decode together, a token for each of their candidates at each step."""

    def __init__(self, decoder: Decoder, texts: Texts):
        self._decoder, self._texts = decoder, texts
        self._waiting: list[Job] = []
        self._groups: dict[tuple[int, ...], _Group] = {}

    def add(self, ask: Ask) -> Job:
        """An ask that joins at the next step."""
        job = Job(ask)
        job.rows = [Row(job, number, random.Random(seed)) for number, seed in enumerate(ask.seeds)]
        self._waiting.append(job)
        return job

    def drop(self, *jobs: Job) -> None:
        """Asks that nobody waits for any more leave before the next step."""
        self._waiting = [job for job in self._waiting if job not in jobs]
        for group in self._groups.values():
            group.leave([place for place, row in enumerate(group.rows) if row.job in jobs])

    @property
    def asks(self) -> list[Ask]:
        """Of each row, those included that join at the next step."""
        waiting = [row for job in self._waiting for row in job.rows]
        return [row.job.ask for row in (*(row for group in self._groups.values() for row in group.rows), *waiting)]

    @property
    def bytes(self) -> int:
        """That the rows' keys and values hold."""
        return sum(group.bytes for group in [*self._groups.values()])

    @property
    def is_empty(self) -> bool:
        """Nothing is left to do."""
        return not self._waiting and not any(group.rows for group in self._groups.values())

    def step(self) -> None:
        """One token for every row; what ends lands in its job."""
        self._admit()
        for group in self._groups.values():
            group.end_late()
            if group.rows:
                group.step()

    def _admit(self) -> None:
        joining: dict[tuple[int, ...], list[Job]] = {}
        for job in self._waiting:
            if job.ask.max_new_tokens > 0:
                joining.setdefault(job.ask.state.root.kv.shape_key, []).append(job)
            else:
                job.candidates = {row.number: Candidate("", 0, 0.0, "length", job.ask.state) for row in job.rows}
        self._waiting = []
        for key, jobs in joining.items():
            group = self._groups.setdefault(key, _Group(self._decoder.rows, self._texts))
            group.join(jobs)


class _Group:
    """Rows over one cache."""

    def __init__(self, make: Callable[[], Rows], texts: Texts):
        self._make, self._texts = make, texts
        self._decoding = make()
        self.rows: list[Row] = []

    @property
    def bytes(self) -> int:
        return self._decoding.bytes

    def join(self, jobs: Sequence[Job]) -> None:
        """The jobs' rows, at the end."""
        if not self.rows:
            self._decoding = self._make()  # nothing is held for rows that are gone
        self._decoding.join([job.ask.state for job in jobs], [len(job.rows) for job in jobs])
        self.rows += [row for job in jobs for row in job.rows]

    def leave(self, places: Sequence[int]) -> None:
        """Rows go."""
        if places:
            gone = set(places)
            kept = [place for place in range(len(self.rows)) if place not in gone]
            self.rows = [self.rows[place] for place in kept]
            if kept:
                self._decoding.keep(kept)
            else:
                self._decoding = self._make()

    def end_late(self) -> None:
        """Rows whose deadline is over end as they are."""
        now = time.monotonic()
        late = [p for p, row in enumerate(self.rows) if row.job.ask.deadline is not None and now >= row.job.ask.deadline]
        for place in late:
            row = self.rows[place]
            # the last token was drawn, and is not fed yet
            self._end(row, "deadline", self._state(place) if row.ids else row.job.ask.state)
        self.leave(late)

    def step(self) -> None:
        """One token for each row."""
        logits = self._decoding.step()
        tokens, logprobs = draw(logits, [row.job.ask.sampling for row in self.rows], [row.draws for row in self.rows])
        gone = []
        for place, (row, token, logprob) in enumerate(zip(self.rows, tokens, logprobs, strict=True)):
            row.ids.append(token)
            row.logprob += logprob
            if not math.isfinite(logprob):
                problem = "what the model computes is not finite: its precision cannot hold this text"
                row.job.candidates[row.number] = Candidate("", 0, 0.0, "failed", None, problem=problem)
                gone.append(place)
            elif ended := self._texts.ended(row.ids, row.job.ask):
                self._end(row, ended, self._state(place))
                gone.append(place)
        self._decoding.feed(tokens)
        self.leave(gone)

    def _state(self, place: int) -> State | None:
        """A row's state; `tail` may lie before what this ask generated."""
        row = self.rows[place]
        if not row.job.ask.keep_states:
            return None
        return self._decoding.state(place, [*row.job.ask.state.tail, *row.ids][-TAIL:])

    def _end(self, row: Row, ended: Ended, state: State | None) -> None:
        text = self._texts.text(row.ids, row.job.ask.state.tail)
        seconds = time.monotonic() - row.job.began
        row.job.candidates[row.number] = Candidate(text, len(row.ids), row.logprob, ended, state, seconds)
