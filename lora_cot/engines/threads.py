"""Many requests to a server at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from lora_cot.errors import EngineError

Item = TypeVar("Item")
Result = TypeVar("Result")


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
