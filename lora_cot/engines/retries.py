"""What asking a server again may cost a whole search, and when to ask it no more, or wait for it no longer."""

from __future__ import annotations

import email.utils
import math
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Circuit:
    """Opens when a server leaves request after request unanswered: for a while nothing more is asked of it."""

    def __init__(self, most: int = 4, rest_seconds: float = 30.0):
        """
        Args:
            most: unanswered requests in a row, tries included, that open it.
            rest_seconds: how long it stays open; the next request decides anew.
        """
        self.most, self.rest_seconds = most, rest_seconds
        self._row, self._until, self._lock = 0, 0.0, threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether nothing is to be asked now."""
        return time.monotonic() < self._until

    def tell(self, answered: bool) -> None:
        """What became of a request."""
        with self._lock:
            self._row = 0 if answered else self._row + 1
            if self._row >= self.most:
                self._until = time.monotonic() + self.rest_seconds


class Waits:
    """Answers that are waited for. All can be given up at once; afterwards none is waited for."""

    def __init__(self) -> None:
        self.are_over = False
        self._queues: set[queue.SimpleQueue[Any]] = set()
        self._lock = threading.Lock()

    def give_up(self) -> None:
        """Each of those who wait gets None."""
        with self._lock:
            self.are_over = True
            for one in self._queues:
                one.put(None)

    def add(self, one: queue.SimpleQueue[Any]) -> None:
        """Somebody waits for what this queue is given."""
        with self._lock:
            self._queues.add(one)
            if self.are_over:
                one.put(None)

    def remove(self, one: queue.SimpleQueue[Any]) -> None:
        """Nobody does any more."""
        with self._lock:
            self._queues.discard(one)


@contextmanager
def waiting(*waits: Waits) -> Iterator[queue.SimpleQueue[Any]]:
    """A queue to wait for; None in it says that one of these waits was given up."""
    made: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for one in waits:
        one.add(made)
    try:
        yield made
    finally:
        for one in waits:
            one.remove(made)


def pause(seconds: float, *waits: Waits) -> bool:
    """Wait; whether that was given up."""
    with waiting(*waits) as given_up:
        try:
            given_up.get(timeout=seconds)
        except queue.Empty:
            return False
        return True


class Retries:
    """What one search may spend on asking again. One object serves any number of threads."""

    def __init__(self, circuit: Circuit, count: int = 64, seconds: float = 600.0):
        """
        Args:
            circuit: of the server; searches share it.
            count: tries after the first, of all requests together.
            seconds: that failed tries and the waits after them took, likewise.
        """
        self.circuit, self.waits = circuit, Waits()
        self._count, self._seconds, self._lock = count, seconds, threading.Lock()

    @classmethod
    def unbounded(cls) -> Retries:
        """For a request that belongs to no search: what bounds it is its own patience."""
        return cls(Circuit(sys.maxsize), sys.maxsize, math.inf)

    def take(self, seconds: float) -> bool:
        """Whether there may be one more try after one that failed; with the wait after it, that one cost so many seconds."""
        with self._lock:
            self._count -= 1
            self._seconds -= seconds
            return self._count >= 0 and self._seconds >= 0


def retry_after(value: str) -> float | None:
    """Seconds that a `Retry-After` header asks for, in either of its forms; None if it cannot be read."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
