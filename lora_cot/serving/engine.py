"""The engine that a request's search sees: what it asks goes to the thread that owns the model."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lora_cot.engines.base import Ask, Candidate
from lora_cot.engines.decoder import State
from lora_cot.engines.interleave import Interleave
from lora_cot.engines.local import LocalEngine
from lora_cot.engines.texts import Growing
from lora_cot.formats import CotFormat
from lora_cot.serving.scheduler import Scheduler
from lora_cot.serving.tickets import Ticket
from lora_cot.types import Sample


@dataclass(frozen=True)
class ScheduledEngine:
    """An `Engine` for one request."""

    scheduler: Scheduler
    local: LocalEngine
    ticket: Ticket
    encoding: threading.Lock
    """Held while prompts are made, but for their images: a tokenizer serves one thread at a time."""
    cot_format: CotFormat
    is_judge: bool = False

    def for_pass(self, cot_format: CotFormat) -> ScheduledEngine:
        """See `Engine.for_pass`."""
        return replace(self, local=self.local.for_pass(cot_format), cot_format=cot_format)

    def see(self, how: Interleave) -> Interleave:
        """See `Engine.see`."""
        return self.local.see(how)

    def plain(self, adapter: bool = True) -> ScheduledEngine:
        """See `Engine.plain`."""
        return replace(self, local=self.local.plain(adapter), is_judge=True)

    def for_search(self) -> ScheduledEngine:
        """See `Engine.for_search`."""
        return replace(self, local=self.local.for_search())

    def count(self, samples: Sequence[Sample]) -> list[int]:
        """Tokens of prompts, those of images included; the images are kept for `start`.

        Raises:
            DataError: an image cannot be opened, or the prompt cannot be written.
        """
        return self.local.encode(samples, self.encoding).lengths

    def start(self, samples: Sequence[Sample]) -> list[State | None]:
        """See `Engine.start`; None for what could not be read before the ticket's deadline, or is more than its judges may
        read: nothing continues it.
        """
        prompts = self.local.encode(samples, self.encoding)
        if self.is_judge and not self.ticket.may_judge(sum(prompts.lengths)):
            return [None] * len(samples)
        if not self.is_judge:
            self.ticket.prompts.setdefault(self.cot_format.name, prompts.lengths[0])
        return self.scheduler.read(self.ticket, self.local, prompts)

    def extend(self, asks: Sequence[Ask]) -> list[list[Candidate]]:
        """See `Engine.extend`."""
        found = self.scheduler.extend(self.ticket, self.local, asks, self._listener(asks))
        tokens = sum(candidate.tokens for candidates in found for candidate in candidates)
        self.ticket.spent.add(self.is_judge, len(asks), tokens)
        for asked, candidates in zip(asks, found, strict=True):
            looks = [shown for candidate in candidates for shown in candidate.looks]
            around = asked.look.how.around if asked.look else 0
            self.ticket.spent.looks += len(looks)
            self.ticket.spent.shown_tokens += sum(len(shown.patches) + around for shown in looks)
        return found

    def choose(self, samples: Sequence[Sample], options: Sequence[str], deadline: float | None = None) -> list[list[float]]:
        """See `Engine.choose`; nan for what is more than the ticket's judges may read."""
        prompts = self.local.encode(samples, self.encoding)
        with self.encoding:
            weighed = self.local.told_apart(options)
        if not self.ticket.may_judge(sum(prompts.lengths)):
            return [[math.nan] * len(options)] * len(samples)
        self.ticket.spent.judge_calls += len(samples)
        return self.scheduler.weigh(self.ticket, self.local, prompts, weighed)

    def _listener(self, asks: Sequence[Ask]) -> Callable[[Sequence[int]], None] | None:
        tell = self.ticket.on_text
        if tell is None or self.is_judge or len(asks) != 1 or len(asks[0].seeds) != 1:
            return None
        state: State | None = asks[0].state
        if state is None:
            return None
        growing = Growing(self.local.texts, state.tail)

        def listen(ids: Sequence[int]) -> None:
            if new := growing.more(ids):
                tell(self.cot_format, new)

        return listen
