"""What one request, and all of them together, may take. Room is counted in tokens: connections say nothing of the work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from lora_cot.serving.errors import ApiError
from lora_cot.serving.fetching import Fetching


@dataclass(frozen=True)
class Limits:
    """Bounds of the server."""

    max_requests: int = 256
    """Requests in the house, waiting ones included."""
    max_tokens: int = 2_000_000
    """That all of them together may still read and write; what is over it is refused with 503."""
    max_request_tokens: int = 1_000_000
    """That one of them may, with all its candidates."""
    max_characters: int = 1_000_000
    """Of the texts of one request, before they are made tokens of: a tokenizer serves one request at a time."""
    max_candidates: int = 16
    max_images: int = 8
    max_image_pixels: int = 80_000_000
    """Of all images of a request; decoding takes three bytes each."""
    max_body_bytes: int = 32 * 2**20
    max_held_bytes: int = 256 * 2**20
    """Of all bodies and fetched images in the house; what is over it is refused with 503."""
    fetching: Fetching = field(default_factory=Fetching)
    request_seconds: float = 600.0
    """After them an answer ends as it is."""
    body_seconds: float = 60.0
    """For a client to send its request."""
    send_seconds: float = 30.0
    """For a client to take a piece of its stream."""
    ping_seconds: float = 10.0
    """Between two signs of life in a stream."""
    drain_seconds: float = 30.0
    """For requests that run when the server is told to end."""


class Admission:
    """Lets requests in while there is room."""

    def __init__(self, limits: Limits, speed: Callable[[], float]):
        """
        Args:
            limits: the bounds.
            speed: tokens a second, to say when it is worth trying again.
        """
        self._limits, self._speed = limits, speed
        self._lock = threading.Lock()
        self.requests, self.tokens, self.bytes = 0, 0, 0
        self.is_open = True

    def enter(self) -> Place:
        """A place for a request whose cost is not known yet.

        Raises:
            ApiError: 503: the house is full, or closing.
        """
        with self._lock:
            if not self.is_open:
                raise ApiError(503, "the server is shutting down", "engine_unavailable", retry_after=10)
            if self.requests >= self._limits.max_requests:
                raise self._full()
            self.requests += 1
            return Place(self)

    def take(self, tokens: int) -> None:
        """Room for so many tokens.

        Raises:
            ApiError: 400: no request may cost as much; 503: there is no room now.
        """
        if tokens > self._limits.max_request_tokens:
            what = f"this search may take {tokens:,} tokens, at most {self._limits.max_request_tokens:,} are allowed"
            raise ApiError(400, f"{what}: ask for fewer candidates, or a lower max_tokens", "search_budget_exceeded", "search")
        with self._lock:
            if self.tokens + tokens > self._limits.max_tokens:
                raise self._full()
            self.tokens += tokens

    def hold(self, size: int) -> None:
        """Room for so many further bytes of a request.

        Raises:
            ApiError: 503: there is no room now.
        """
        with self._lock:
            if self.bytes + size > self._limits.max_held_bytes:
                raise self._full()
            self.bytes += size

    def leave(self, tokens: int, size: int) -> None:
        """A request has ended."""
        with self._lock:
            self.requests -= 1
            self.tokens -= tokens
            self.bytes -= size

    def _full(self) -> ApiError:
        wait = self.tokens / max(self._speed(), 1.0) / 2
        return ApiError(503, "the queue is full", "queue_full", retry_after=min(max(wait, 1.0), 60.0))


class Place:
    """A request's place; it is given back once."""

    def __init__(self, admission: Admission):
        self._admission, self._tokens, self._bytes, self._left = admission, 0, 0, False
        self._lock = threading.Lock()

    def take(self, tokens: int) -> None:
        """See `Admission.take`."""
        self._admission.take(tokens)
        self._tokens = tokens

    def hold(self, size: int) -> None:
        """See `Admission.hold`; nothing is held for a request that has left."""
        with self._lock:
            if not self._left:
                self._admission.hold(size)
                self._bytes += size

    def leave(self) -> None:
        """See `Admission.leave`."""
        with self._lock:
            if not self._left:
                self._left = True
                self._admission.leave(self._tokens, self._bytes)
