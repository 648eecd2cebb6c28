"""What asking a server again may cost a whole search, and when to ask it no more."""

from __future__ import annotations

import math
import sys
import threading
import time


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


class Retries:
    """What one search may spend on asking again. One object serves any number of threads."""

    def __init__(self, circuit: Circuit, count: int = 64, seconds: float = 600.0):
        """
        Args:
            circuit: of the server; searches share it.
            count: tries after the first, of all requests together.
            seconds: that failed tries and the waits after them took, likewise.
        """
        self.circuit = circuit
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
