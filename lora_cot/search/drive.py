"""Searches as generators: each is written for one question, and says what it needs; here they are run together.

A search yields a request and is sent its answer. All searches that wait for the same kind of thing of the same engine
or scorer share a call, wherever in their question they are.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lora_cot.engines.base import Ask, Engine
from lora_cot.search.contests import Contest, Scorer
from lora_cot.types import Sample

T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """Asks for the state of a prompt."""

    engine: Engine
    sample: Sample


@dataclass(frozen=True)
class Extend:
    """Asks for candidates: a list for each ask."""

    engine: Engine
    asks: tuple[Ask, ...]


@dataclass(frozen=True)
class Judge:
    """Asks for verdicts: one for each contest."""

    scorer: Scorer
    contests: tuple[Contest, ...]


Request = Start | Extend | Judge
Steps = Generator[Request, Any, T]
"""A search, or a part of one: it comes to a T."""
ORDER = (Start, Judge, Extend)
"""Candidates are asked for last, when all searches wait for some: that is the call that gains most from being shared."""


def drive(searches: Sequence[Steps[T]]) -> list[T]:
    """What each of the searches comes to, in order. They go on in step: one call for all requests of a kind."""
    found: dict[int, T] = {}
    waiting: dict[int, Request] = {}

    def go_on(number: int, answer: Any) -> None:
        try:
            waiting[number] = searches[number].send(answer)
        except StopIteration as end:
            found[number] = end.value

    def serve(numbers: Sequence[int]) -> None:  # a function, so that no answer is held while the next one is made
        for number, answer in zip(numbers, _answers([waiting.pop(number) for number in numbers]), strict=True):
            go_on(number, answer)

    for number in range(len(searches)):
        go_on(number, None)
    while waiting:
        kind = next(kind for kind in ORDER if any(isinstance(request, kind) for request in waiting.values()))
        groups: dict[int, list[int]] = {}
        for number, request in waiting.items():
            if isinstance(request, kind):
                groups.setdefault(id(_asked(request)), []).append(number)
        for numbers in groups.values():
            serve(numbers)
    return [found[number] for number in range(len(searches))]


def _asked(request: Request) -> Any:
    return request.scorer if isinstance(request, Judge) else request.engine


def _answers(requests: Sequence[Any]) -> list[Any]:
    """Answers to requests of one kind to one engine or scorer."""
    first = requests[0]
    if isinstance(first, Start):
        return first.engine.start([request.sample for request in requests])
    if isinstance(first, Extend):
        sizes = [len(request.asks) for request in requests]
        flat: list[Any] = first.engine.extend([ask for request in requests for ask in request.asks])
    else:
        sizes = [len(request.contests) for request in requests]
        flat = first.scorer([contest for request in requests for contest in request.contests])
    rest = iter(flat)
    return [[next(rest) for _ in range(size)] for size in sizes]
