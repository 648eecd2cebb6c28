"""Room for rows: the memory that keys and values may take, what rows would take of it, and how many of them there may be."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass

import psutil
import torch

from lora_cot.engines.base import Ask

GIB = 2**30
FREE_PART = 0.75
"""Of the memory that is free once the model is loaded; the rest is for what prompts and steps take while they are computed."""
RECOVERY_SECONDS = 60.0
"""After which a batch that ran out of memory may have twice the rows again."""


@dataclass(frozen=True)
class Load:
    """What the engine has to do."""

    rows: int = 0
    """That decode now."""
    waiting: int = 0
    """Rows and prompts that have to wait."""
    row_limit: int = 0
    """Rows that may decode."""
    row_bytes: int = 0
    """Keys and values of those that decode."""
    rest_bytes: int = 0
    """Keys and values of prompts and candidates that searches hold."""


def room_of(device: torch.device, gib: float | None = None) -> int:
    """Bytes that keys and values may take.

    Args:
        device: that the model was loaded on.
        gib: what was asked for; a part of what is free there if not given.
    """
    if gib is not None:
        return int(gib * GIB)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(free * FREE_PART)


def most_tokens(ask: Ask) -> int:
    """What a candidate may add to its state, a `LocalEngine`'s: what it is shown included."""
    seen = ask.state.root.sight
    if ask.look is None or seen is None:
        return ask.max_new_tokens
    return ask.max_new_tokens + ask.look.how.most_shown(len(seen.patches), ask.max_new_tokens, ask.state.gaze)


@dataclass(frozen=True)
class _Sharing:
    """Rows that share a buffer, each as long as the longest of them will be."""

    rows: int = 0
    text: int = 0
    """Bytes of a row's text, at its end."""
    still: int = 0
    """Bytes of what it looks at beside it."""

    @property
    def bytes(self) -> int:
        return self.rows * (self.text + self.still)

    def with_one(self, ask: Ask) -> _Sharing:
        text, still = ask.state.root.kv.row_bytes(most_tokens(ask))
        return _Sharing(self.rows + 1, max(self.text, text), max(self.still, still))


class Room:
    """What rows come to: twice what they hold, since a buffer is copied when rows join or leave it, or it grows."""

    def __init__(self, most: int | None, held: int = 0):
        """
        Args:
            most: bytes that there is room for; None: any number.
            held: bytes of what is no row.
        """
        self._most, self._held = most, held
        self._sharing: dict[Hashable, _Sharing] = {}

    @property
    def rows(self) -> int:
        """Those that there are."""
        return sum(one.rows for one in self._sharing.values())

    @property
    def left(self) -> int | None:
        """Bytes; None: any number."""
        return None if self._most is None else self._most - self._held - 2 * self._bytes

    def add(self, batch: Hashable, ask: Ask) -> None:
        """A row has joined a batch."""
        key = batch, ask.state.root.kv.shape_key
        self._sharing[key] = self._sharing.get(key, _Sharing()).with_one(ask)

    def fits(self, batch: Hashable, ask: Ask, part: float = 1.0) -> bool:
        """Whether one more row may join.

        Args:
            batch: that it would join.
            ask: its own.
            part: of the room, which is as much as it may fill. The only row may always join, or it would never be drawn.
        """
        if self._most is None or not self.rows:
            return True
        one = self._sharing.get((batch, ask.state.root.kv.shape_key), _Sharing())
        more = one.with_one(ask).bytes - one.bytes
        return self._held + 2 * (self._bytes + more) <= part * self._most

    @property
    def _bytes(self) -> int:
        return sum(one.bytes for one in self._sharing.values())


class RowLimit:
    """How many rows may decode: fewer once memory ran out, and more again after a while without that."""

    def __init__(self, most: int):
        self.most = self.now = most
        self._since = 0.0

    def shrink(self, rows: int) -> None:
        """So many were too many."""
        self.now, self._since = max(1, min(self.now, rows) // 2), time.monotonic()

    def recover(self) -> None:
        """Allow twice as many, if it is time."""
        if self.now < self.most and time.monotonic() - self._since >= RECOVERY_SECONDS:
            self.now, self._since = min(2 * self.now, self.most), time.monotonic()
