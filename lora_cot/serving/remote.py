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

TURN_TOKENS = 64
"""Of a template, around a question and its answer."""
IMAGE_TOKENS = 6_500
"""Of an image: models that look closest have one for 28 by 28 pixels, and nothing larger than 2,048 by 2,048 is sent."""


@dataclass(frozen=True)
class CountingEngine:
    """A remote engine for one request: it counts, and nothing is waited for any more once the request was cancelled."""

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
        remote = self.remote.for_search()
        self.ticket.on_cancel = remote.give_up
        return replace(self, remote=remote)

    def start(self, samples: Sequence[Sample]) -> list[Any]:
        """See `Engine.start`."""
        return self.remote.start(samples)

    def extend(self, asks: Sequence[Ask]) -> list[list[Candidate]]:
        """See `Engine.extend`."""
        self.ticket.check()
        found = self.remote.extend(asks)
        self.ticket.spent.add(self.is_judge, len(asks), sum(c.spent for candidates in found for c in candidates))
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

    made = ServedModel(name, cot_format, search, make, lambda _engine, _sample: 0, _most, streams_tokens=False)
    return replace(made, is_ready=lambda: not engine.is_resting, close=engine.close)


def _most(engine: Engine, sample: Sample) -> int:
    """Tokens of a prompt whose tokenizer is not here: at most one a byte."""
    asked: Any = engine
    texts = [asked.remote.cot_format.question(one, sample.choices) + (one.answer or "") for one in sample.exchanges[-1:]]
    texts += [one.question + (one.answer or "") for one in sample.exchanges[:-1]]
    return sum(len(text.encode()) + TURN_TOKENS for text in texts) + len(sample.images) * IMAGE_TOKENS
