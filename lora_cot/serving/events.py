"""What a request asks for, the question that it becomes, and what happens on the way to its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_cot.formats import CotFormat
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.run import Pass
from lora_cot.search.trace import Completion, TracedStage
from lora_cot.serving.models import ServedModel
from lora_cot.serving.schema import Message, SearchOptions
from lora_cot.serving.tickets import Ticket
from lora_cot.types import Sample


@dataclass(frozen=True)
class Wanted:
    """What a request asks for, of whichever API."""

    model: str
    messages: Sequence[Message]
    options: SearchOptions | None
    effort: str | None
    sampling: dict[str, Any]
    most_tokens: int | None
    n: int
    stream: bool
    arrived: float


@dataclass(frozen=True)
class Accepted:
    """A request that was found to be answerable."""

    model: ServedModel
    samples: tuple[Sample, ...]
    config: SearchSection
    passes: tuple[Pass, ...]
    ticket: Ticket
    arrived: float
    streams_tokens: bool


@dataclass(frozen=True)
class Text:
    """A further piece of the one text that is written."""

    text: str
    pass_format: CotFormat | None


@dataclass(frozen=True)
class Decided:
    """A step of a search, and which of the request's answers it belongs to."""

    number: int
    step: TracedStage


@dataclass(frozen=True)
class Done:
    """All answers of a request; nothing comes after it."""

    completions: list[Completion]


Event = Text | Decided | Done
