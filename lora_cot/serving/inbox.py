"""Calls of many threads for the one that runs the model. Those that come together are taken together."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator

from lora_cot.serving.calls import Call

GATHER_SECONDS = 0.015
"""How long an idle engine waits for calls that are being prepared: prompts that are read together are decoded without padding,
and clients that ask at once are served at once."""


class Inbox:
    """What was asked and is not taken yet."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._coming = 0

    @property
    def waiting(self) -> int:
        """Calls that are not taken yet."""
        return self._calls.qsize()

    def put(self, call: Call | None) -> None:
        """A call; None only wakes who waits."""
        self._calls.put(call)

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """Within, a call is being prepared."""
        with self._lock:
            self._coming += 1
        try:
            yield
        finally:
            with self._lock:
                self._coming -= 1

    def take(self, idle: bool) -> list[Call]:
        """All calls there are.

        Args:
            idle: there is nothing else to do: wait for one, and then for those that are being prepared.
        """
        found = [self._calls.get()] if idle else []
        end = time.monotonic() + GATHER_SECONDS
        while True:
            try:
                left = end - time.monotonic() if idle and any(found) and self._coming else 0.0
                found.append(self._calls.get(timeout=min(left, 0.001)) if left > 0 else self._calls.get(block=False))
            except queue.Empty:
                if left <= 0:
                    return [call for call in found if call]
