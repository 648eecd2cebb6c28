"""Models that another server runs: ours stands before vLLM or SGLang, with the same surface.

Searches run here, candidates there. An answer is told stage by stage, or whole: tokens are not passed on one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_cot.engines.base import Ask, Candidate, Engine
from lora_cot.engines.interleave import Interleave
from lora_cot.engines.remote import RemoteEngine
from lora_cot.formats import CotFormat
from lora_cot.recipe.schema import SearchSection
from lora_cot.serving.models import ServedModel
from lora_cot.serving.tickets import Ticket
from lora_cot.types import Sample


@dataclass(frozen=True)
class CountingEngine:
    """A remote engine for one request: it counts, and asks nothing more once the request was cancelled."""

    remote: RemoteEngine
    ticket: Ticket
    is_judge: bool = False

    def for_pass(self, cot_format: CotFormat) -> CountingEngine:
        """See `Engine.for_pass`."""
        return replace(self, remote=self.remote.for_pass(cot_format))

    def see(self, how: Interleave) -> Interleave:
        """See `Engine.see`."""
        return self.remote.see(how)

    def plain(self, adapter: bool = True) -> CountingEngine:
        """See `Engine.plain`."""
        return replace(self, remote=self.remote.plain(adapter), is_judge=True)

    def for_search(self) -> CountingEngine:
        """See `Engine.for_search`."""
        return replace(self, remote=self.remote.for_search())

    def start(self, samples: Sequence[Sample]) -> list[Any]:
        """See `Engine.start`."""
        return self.remote.start(samples)

    def extend(self, asks: Sequence[Ask]) -> list[list[Candidate]]:
        """See `Engine.extend`."""
        self.ticket.check()
        found = self.remote.extend(asks)
        self.ticket.spent.add(self.is_judge, len(asks), sum(c.tokens for candidates in found for c in candidates))
        return found

    def choose(self, samples: Sequence[Sample], options: Sequence[str], deadline: float | None = None) -> list[list[float]]:
        """See `Engine.choose`."""
        self.ticket.check()
        self.ticket.spent.judge_calls += len(samples)
        return self.remote.choose(samples, options, deadline)


def served_remote(name: str, engine: RemoteEngine, cot_format: CotFormat, search: SearchSection) -> ServedModel:
    """A model of another server under a name. How long a prompt is, that server knows: it refuses what is too long."""

    def make(ticket: Ticket) -> Engine:
        return CountingEngine(engine, ticket)

    return ServedModel(name, cot_format, search, make, lambda _engine, _sample: 0, None, streams_tokens=False)
