"""A model behind a server that is asked one question after another, to teach or to judge: who it is, and when it is gone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lora_cot.engines.chat import ChatServer, Patience
from lora_cot.engines.completions import Reply
from lora_cot.engines.threads import in_threads
from lora_cot.errors import AccessError, EngineError, Problem, nearest

GIVE_UP_AFTER = 5
"""Questions in a row without an answer, after which the server counts as dead."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Teacher:
    """A model behind an OpenAI-compatible server, and how it is asked."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    max_tokens: int | None = None
    """Of an answer; what the question is worth if not given. A model that thinks first needs more."""
    temperature: float = 0.0
    patience: Patience = field(default_factory=Patience)

    def ask(self, server: ChatServer, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> Reply:
        """Its answer, of so many tokens unless it has a limit of its own.

        Raises:
            AccessError, RejectedError, EngineError: see `ChatServer.ask`.
        """
        keys = {"max_tokens": self.max_tokens or max_tokens, "temperature": self.temperature}
        return server.ask({"model": self.model, "messages": list(messages), **keys}).replies[0]


def check_model(server: ChatServer, model: str) -> None:
    """See that the server has the model, where it tells which it has.

    Raises:
        AccessError: it has not.
    """
    known = [one.id for one in server.listed() or ()]
    if known and model not in known and f"{model}:latest" not in known:
        raise AccessError(Problem(server.url, f"no model '{model}'", nearest(model, known)))


def ask_each(
    ask: Callable[[Item], Any],
    todo: Sequence[Item],
    concurrency: int,
    words: tuple[str, str],
    failure: Callable[[Any], str],
    told: Callable[[], Mapping[str, Any]] = dict,
) -> Iterator[tuple[Item, Any]]:
    """Each item with its answer as it comes, or the error that stands for one; a bar shows how far it is.

    Args:
        ask: gives an item's answer.
        todo: the items.
        concurrency: requests at once.
        words: what is done, and what an item is called: annotating, row.
        failure: why an answer is none; empty where it is one.
        told: figures beside the bar.

    Raises:
        AccessError: the address, key or model is wrong.
        EngineError: `GIVE_UP_AFTER` items running got no answer.
    """
    from tqdm import tqdm

    failures, often = 0, 0.5 if sys.stderr.isatty() else 10
    with tqdm(total=len(todo), desc=words[0], unit=words[1], file=sys.stderr, mininterval=often) as bar:
        for item, outcome in in_threads(ask, todo, min(concurrency, len(todo))):
            yield item, outcome
            if isinstance(outcome, AccessError):
                raise outcome
            why = failure(outcome)
            failures = failures + 1 if why else 0
            if failures >= GIVE_UP_AFTER:
                raise EngineError(Problem("", f"{GIVE_UP_AFTER} {words[1]}s running got no answer, the last: {why}"))
            bar.set_postfix(**told(), refresh=False)
            bar.update()
