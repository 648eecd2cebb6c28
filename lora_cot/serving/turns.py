"""Whose turn it is to decode: the rows that join, of all requests."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from lora_cot.serving.calls import Extension
from lora_cot.serving.room import Room

LARGE_PART = 0.75
"""Of the rows and of the memory, that those who have rows may fill; the rest is for those that have none."""


def shares(waiting: Iterable[Extension], room: Room, most: int) -> Counter[Extension]:
    """How many rows each gets: one in turn, first those that have none, as they came.

    Where the first of these does not fit, nobody joins after it: rows that fit would take, one by one, what it waits for.

    Args:
        waiting: those with candidates that have no row, in turn.
        room: with the rows that decode; those that join are added.
        most: rows that may decode.
    """
    turn = deque(sorted(waiting, key=lambda one: (1, 0.0) if one.rows else (0, one.arrived)))
    found = Counter[Extension]()
    while turn and room.rows < most:
        extension = turn.popleft()
        is_large = extension.rows + found[extension] > 0
        ask = extension.waiting(found[extension])
        fits = room.fits(extension.key, ask, LARGE_PART if is_large else 1.0)
        if not fits and not is_large:
            break
        if not fits or (is_large and most - room.rows <= int(most * (1 - LARGE_PART))):
            continue
        room.add(extension.key, ask)
        found[extension] += 1
        if extension.left > found[extension]:
            turn.append(extension)
    return +found
