"""A model as requests name it, and how its answers are looked for by default."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from lora_cot.engines.base import Engine
from lora_cot.errors import SearchError
from lora_cot.formats import CotFormat
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.strategies import STRATEGIES, check
from lora_cot.serving.tickets import Ticket
from lora_cot.types import Sample


@dataclass(frozen=True)
class ServedModel:
    """One name in `/v1/models`."""

    name: str
    cot_format: CotFormat
    """With the tags its tokenizer can spell."""
    search: SearchSection
    """What a request gets that asks for nothing else."""
    engine: Callable[[Ticket], Engine]
    """For one request."""
    count: Callable[[Engine, Sample], int]
    """(engine, sample) to the tokens of its prompt, those of images included; 0 where that is not known."""
    most: Callable[[Engine, Sample], int] | None = None
    """(engine, sample) to the tokens that its prompt has at most, where that is not what is counted."""
    context: int | None = None
    """Tokens that a prompt and its answer may have together."""
    streams_tokens: bool = True
    """Without a search, an answer is told as it is written."""
    readers: frozenset[Hashable] = frozenset()
    """`LocalEngine.reader` of its passes and judges, if this process runs it."""
    is_ready: Callable[[], bool] = lambda: True
    """Whether what runs it can be asked."""
    close: Callable[[], None] = lambda: None
    """Give up what is asked of it."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def presets(self) -> Mapping[str, dict[str, Any]]:
        """Search settings by `reasoning_effort`."""
        low = {"strategy": "sample"}
        high = {"strategy": "stage_beam" if self.cot_format.is_tagged else "best_of_n", "candidates": 4}
        if self.search.scorer == "reward" and self.search.swires.accepts_above is not None:
            high = {"strategy": "swires"} if self.cot_format.is_tagged and not self.cot_format.split else high
        return {
            "none": {"strategy": "greedy"},
            "minimal": low,
            "low": low,
            "medium": {"strategy": "adaptive", "candidates": 4},
            "high": high,
        }

    def _strategies(self) -> list[str]:
        """Those that a request to this model can name."""
        found = []
        for name in sorted(STRATEGIES):
            with suppress(SearchError):
                check(self.cot_format, self.search.model_copy(update={"strategy": name}))
                found.append(name)
        return found

    def to_json(self, max_candidates: int) -> dict[str, Any]:
        """As `/v1/models` lists it."""
        default = self.search.model_dump(include={"strategy", "candidates", "scorer", "temperature", "top_p"})
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "lora_cot",
            "x_search": {
                "default": default,
                "reasoning_effort": dict(self.presets),
                "strategies": self._strategies(),
                "max_candidates": max_candidates,
                "stages": [stage.name for stage in self.cot_format.stages],
                "context_length": self.context,
            },
        }
