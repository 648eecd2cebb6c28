"""Models that this process runs: one base, any number of adapters, each a name that requests choose by."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import suppress
from typing import Any

from lora_cot.engines.base import Engine
from lora_cot.engines.local import LocalEngine
from lora_cot.errors import SearchError
from lora_cot.formats import CotFormat
from lora_cot.recipe.schema import SearchSection
from lora_cot.serving.engine import ScheduledEngine
from lora_cot.serving.models import ServedModel
from lora_cot.serving.scheduler import Scheduler
from lora_cot.serving.tickets import Ticket
from lora_cot.types import Sample

_ENCODING = threading.Lock()
"""Models of one base share its tokenizer."""


def served_local(
    name: str, engine: LocalEngine, cot_format: CotFormat, search: SearchSection, scheduler: Scheduler, context: int | None
) -> ServedModel:
    """A model of this process under a name.

    Args:
        name: that requests choose it by.
        engine: runs it.
        cot_format: how it reasons.
        search: what a request gets that asks for nothing else.
        scheduler: the thread that owns the model.
        context: tokens of a prompt and its answer together; None: no bound.
    """
    cot_format = cot_format.spelled(engine.backbone.family.tag_style)
    passes = [engine.for_pass(one) for one in cot_format.passes] if cot_format.split else []  # and not by two requests at once
    engine.decode_apart()
    readers = frozenset(reader for one in (engine, *passes) for reader in _readers(one, search.judge_adapter))

    def make(ticket: Ticket) -> ScheduledEngine:
        return ScheduledEngine(scheduler, engine, ticket, _ENCODING, cot_format)

    return ServedModel(name, cot_format, search, make, _count, context=context, readers=readers)


def _readers(engine: LocalEngine, judge_adapter: bool) -> Iterator[Hashable]:
    """Of what an engine is asked, and its judges."""
    yield engine.reader
    with suppress(SearchError):  # there can be no such judge
        yield engine.plain(judge_adapter).reader


def _count(engine: Engine, sample: Sample) -> int:
    counted: Any = engine
    return counted.count([sample])[0]


def context_length(engine: LocalEngine) -> int | None:
    """Tokens that the model was made for; None where its positions have no end."""
    config = engine.backbone.base_model.config
    text = getattr(config, "text_config", config)
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) else None
