"""Rows that decode together: candidates of many asks, which join and leave at any step."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lora_cot.engines.base import Ask, Candidate, Ended
from lora_cot.engines.causal import CausalDecoder
from lora_cot.engines.decoder import Decoder, State
from lora_cot.engines.interleave import Gaze, Shown
from lora_cot.engines.looking import look
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
    gaze: Gaze | None = None
    """Of one that looks at its images again."""
    looks: list[Shown] = field(default_factory=list)

    def fail(self, problem: str) -> None:
        """End without a candidate, and say why."""
        self.job.candidates[self.number] = Candidate("", 0, math.nan, "failed", None, problem=problem)


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
        gaze = _begun(ask)
        job.rows = [Row(job, number, random.Random(seed), gaze=gaze) for number, seed in enumerate(ask.seeds)]
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
                group.look()

    def _admit(self) -> None:
        joining: dict[tuple[int, ...], list[Job]] = {}
        for job in self._waiting:
            if job.ask.max_new_tokens > 0:
                joining.setdefault(job.ask.state.root.kv.shape_key, []).append(job)
            else:
                job.candidates = {row.number: Candidate("", 0, 0.0, "length", job.ask.state) for row in job.rows}
        self._waiting = []
        for key, jobs in joining.items():
            group = self._groups.setdefault(key, _Group(self._decoder, self._texts))
            group.join(jobs)


class _Group:
    """Rows over one cache."""

    def __init__(self, decoder: Decoder, texts: Texts):
        self._decoder, self._texts = decoder, texts
        self._decoding = decoder.rows()
        self.rows: list[Row] = []

    @property
    def bytes(self) -> int:
        return self._decoding.bytes

    def join(self, jobs: Sequence[Job]) -> None:
        """The jobs' rows, at the end."""
        self._join([job.ask.state for job in jobs], [job.rows for job in jobs])

    def look(self) -> None:
        """Rows that stand where they look at their images do so, and go on at the end."""
        places = [place for place, row in enumerate(self.rows) if row.gaze and row.gaze.is_due]
        states = [self._state(place, self._decoding.tokens[place], self.rows[place].gaze) for place in places]
        rows = [[self.rows[place]] for place in places]
        self.leave(places)
        if places:
            self._join(states, rows)

    def _join(self, states: Sequence[State], rows: Sequence[Sequence[Row]]) -> None:
        """Rows of each state; what is due looks first, once for all rows of a state."""
        looked = self._looked(states, rows)
        joining = [(looked[place], mine) for place, mine in enumerate(rows) if place in looked]
        if not joining:
            return
        if not self.rows:
            self._decoding = self._decoder.rows()  # nothing is held for rows that are gone
        self._decoding.join([state for state, _ in joining], [len(mine) for _, mine in joining])
        self.rows += [row for _, mine in joining for row in mine]

    def _looked(self, states: Sequence[State], rows: Sequence[Sequence[Row]]) -> dict[int, State]:
        """The states by their place, after they looked; rows of one that could not end, and it is missing."""
        found = dict(enumerate(states))
        due = [place for place, mine in enumerate(rows) if any(row.gaze and row.gaze.is_due for row in mine)]
        if not due:
            return found
        firsts = [rows[place][0] for place in due]
        texts = [self._texts.text(row.ids, row.job.ask.state.tail) for row in firsts]
        looking = [row.job.ask.look for row in firsts if row.job.ask.look]
        standing = [replace(states[place], gaze=row.gaze) for place, row in zip(due, firsts, strict=True)]
        assert isinstance(self._decoder, CausalDecoder), "others refuse to see"
        for place, text, seen in zip(due, texts, look(self._decoder, looking, standing, texts), strict=True):
            if isinstance(seen, str):
                del found[place]
                for row in rows[place]:
                    row.fail(seen)
                continue
            found[place], shown = seen
            for row in rows[place]:
                row.gaze = found[place].gaze
                row.looks += [replace(shown, place=len(text))] if shown else []
        return found

    def leave(self, places: Sequence[int]) -> None:
        """Rows go."""
        if places:
            gone = set(places)
            kept = [place for place in range(len(self.rows)) if place not in gone]
            self.rows = [self.rows[place] for place in kept]
            if kept:
                self._decoding.keep(kept)
            else:
                self._decoding = self._decoder.rows()

    def end_late(self) -> None:
        """Rows whose deadline is over end as they are."""
        now = time.monotonic()
        late = [p for p, row in enumerate(self.rows) if row.job.ask.deadline is not None and now >= row.job.ask.deadline]
        for place in late:
            self._end(place, "deadline", self._decoding.tokens[place])
        self.leave(late)

    def step(self) -> None:
        """One token for each row."""
        logits = self._decoding.step()
        tokens, logprobs = draw(logits, [row.job.ask.sampling for row in self.rows], [row.draws for row in self.rows])
        gone = []
        for place, (row, token, logprob) in enumerate(zip(self.rows, tokens, logprobs, strict=True)):
            row.ids.append(token)
            row.logprob += logprob
            self._follow(row)
            if not math.isfinite(logprob):
                row.fail("what the model computes is not finite: its precision cannot hold this text")
                gone.append(place)
            elif ended := self._texts.ended(row.ids, row.job.ask):
                self._end(place, ended, token)
                gone.append(place)
        self._decoding.feed(tokens)
        self.leave(gone)

    def _follow(self, row: Row) -> None:
        """See whether a row's last token brings it to where it looks."""
        ask = row.job.ask
        if ask.look and row.gaze:
            ended = (mark for mark in ask.look.how.marks if self._texts.ends_with(row.ids, ask.state.tail, mark))
            row.gaze = row.gaze.after(ask.look.how, self._texts.piece(row.ids[-1]), next(ended, ""))

    def _state(self, place: int, last: int, gaze: Gaze | None) -> State:
        """A row's state; `tail` may lie before what this ask generated."""
        row = self.rows[place]
        return self._decoding.state(place, last, [*row.job.ask.state.tail, *row.ids][-TAIL:], gaze)

    def _end(self, place: int, ended: Ended, last: int) -> None:
        """A row's candidate.

        Args:
            place: of the row.
            ended: how.
            last: the token that it would be fed with next.
        """
        row, ask = self.rows[place], self.rows[place].job.ask
        text = self._texts.text(row.ids, ask.state.tail)
        if not row.ids:  # a look that nothing came of is made anew
            state, looks = ask.state, []
        else:
            gaze = row.gaze and replace(row.gaze, text=row.gaze.text + text)
            state, looks = self._state(place, last, gaze) if ask.keep_states else None, row.looks
        seconds = time.monotonic() - row.job.began
        found = Candidate(text, len(row.ids), row.logprob, ended, state, seconds, looks=tuple(looks))
        row.job.candidates[row.number] = found


def _begun(ask: Ask) -> Gaze | None:
    """What a text has been shown when it goes on."""
    return ask.state.gaze or Gaze(is_due=ask.look.how.from_start) if ask.look else None
