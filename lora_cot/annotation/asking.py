"""One row: what the teacher says to it. And many at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lora_cot.annotation.prompts import messages, verdict_messages
from lora_cot.annotation.rows import gold_answer
from lora_cot.annotation.verdicts import Aside, disagreement, read_verdict, stages_of
from lora_cot.data.images import MAX_PIXELS
from lora_cot.engines.chat import ChatServer, Patience, Reply
from lora_cot.errors import AccessError, DataError, EngineError, RejectedError
from lora_cot.formats import CotFormat
from lora_cot.formats.answers import read_option
from lora_cot.types import Sample

VERDICT_TOKENS = 300
"""Budget of the second question's answer; LLaVA-CoT's."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Teacher:
    """A model behind an OpenAI-compatible server, and how it is asked."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    max_tokens: int | None = None
    """Of an answer; the sum of the stages' own budgets if not given. A teacher that thinks first needs more."""
    temperature: float = 0.0
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class Asker:
    """Asks one teacher for the stages of one format."""

    server: ChatServer
    teacher: Teacher
    cot_format: CotFormat
    faithful: bool = False
    max_pixels: int = MAX_PIXELS

    def __call__(self, sample: Sample) -> dict[str, str] | Aside:
        """The stages of a sample, or why there are none. The answer stage holds the gold answer where the teacher's is the
        same by our own reading, and the teacher's words where only its verdict found them to agree.

        Raises:
            AccessError: the server refuses all requests.
            EngineError: it gave no answer.
        """
        gold = gold_answer(sample.last, self.cot_format)
        try:
            asked = messages(self.cot_format, sample, gold if self.faithful else None, self.max_pixels)
        except DataError as error:
            return Aside("image", str(error))
        try:
            return self._stages(sample, gold, asked)
        except AccessError:
            raise
        except RejectedError as error:
            return Aside("rejected", str(error))

    def _stages(self, sample: Sample, gold: str, asked: list[dict[str, Any]]) -> dict[str, str] | Aside:
        budget = self.teacher.max_tokens or sum(stage.max_new_tokens for stage in self.cot_format.stages)
        reply = self._complete(asked, budget)
        stages = stages_of(reply, self.cot_format)
        if isinstance(stages, Aside):
            return stages
        name = self.cot_format.answer_stage.name
        wrong = disagreement(stages[name], gold, sample.choices)
        if wrong is None:
            return stages | {name: (sample.last.stages or {}).get(name) or gold}
        if not self.faithful or (sample.choices and read_option(gold, sample.choices) is not None):
            return Aside(wrong.reason, wrong.detail, reply.text)
        verdict = self._complete(verdict_messages(sample.last.question, stages[name], gold), VERDICT_TOKENS).text
        valid = read_verdict(verdict)
        if valid is None:
            return Aside("verdict", " ".join(verdict.split())[:200], reply.text)
        return stages if valid else Aside(wrong.reason, wrong.detail, reply.text)

    def _complete(self, asked: list[dict[str, Any]], max_tokens: int) -> Reply:
        keys = {"max_tokens": max_tokens, "temperature": self.teacher.temperature}
        return self.server.complete({"model": self.teacher.model, "messages": asked, **keys})[0]


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Iterator[tuple[Item, Result | EngineError]]:
    """Each item with what became of it, in the order in which they are done.

    An item is taken only when a thread is free for it. The threads hold no file: left alone, at the end of the loop or of
    the process, they harm nothing.
    """
    feed, taking, stop = iter(items), threading.Lock(), threading.Event()
    done: queue.SimpleQueue[tuple[Item, Any] | None] = queue.SimpleQueue()

    def run() -> None:
        while not stop.is_set():
            with taking:
                item = next(feed, stop)
            if isinstance(item, threading.Event):
                break
            try:
                done.put((item, work(item)))
            except BaseException as error:
                if type(error) is not EngineError:  # of no use to ask for more
                    stop.set()
                done.put((item, error))
        done.put(None)

    for _ in range(count):
        threading.Thread(target=run, daemon=True).start()
    try:
        left = count
        while left:
            got = done.get()
            if got is None:
                left -= 1
                continue
            if isinstance(got[1], BaseException) and not isinstance(got[1], EngineError):
                raise got[1]
            yield got
    finally:
        stop.set()
