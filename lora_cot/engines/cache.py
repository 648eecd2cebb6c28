"""Key-value caches: one compact tensor for a state at rest, one padded buffer for rows that decode together.

The only file that touches the cache classes of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64
"""Positions that a buffer grows by when it is full."""


class BufferedLayer(DynamicLayer):
    """A layer that writes into a buffer with room to grow; concatenating at each step would copy all of it."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int):
        """
        Args:
            keys: (B, H, capacity, D) buffer.
            values: the same.
            length: positions that are filled.
        """
        super().__init__()
        self.lazy_initialization(keys, values)
        self._buffers = [keys, values]
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new positions; returns everything up to them."""
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            room = [*self._buffers[0].shape]
            room[-2] = end - begin + ROOM
            self._buffers = [torch.cat([buffer, buffer.new_zeros(room)], dim=-2) for buffer in self._buffers]
        self._buffers[0][..., begin:end, :] = key_states
        self._buffers[1][..., begin:end, :] = value_states
        self._show(end)
        return self.keys, self.values  # type: ignore[return-value]

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all other rows."""
        length = self.get_seq_length()
        self._buffers = [buffer[rows] for buffer in self._buffers]
        self._show(length)


def pack(states: Sequence[torch.Tensor], forks: Sequence[int]) -> tuple[Cache, torch.Tensor]:
    """A cache of rows that decode together, padded on the left.

    Args:
        states: one (L, 2, H, T_i, D) for each question.
        forks: rows that each of them becomes.

    Returns:
        The cache, and the number of padded positions of each row.
    """
    longest = max(state.shape[3] for state in states)
    layers, _, heads, _, width = states[0].shape
    rows = sum(forks)
    buffer = states[0].new_zeros((layers, 2, rows, heads, longest + ROOM, width))
    padding, row = [], 0
    for state, count in zip(states, forks, strict=True):
        begin = longest - state.shape[3]
        buffer[:, :, row : row + count, :, begin:longest] = state.unsqueeze(2)
        padding += [begin] * count
        row += count
    cache = Cache(layers=[BufferedLayer(buffer[layer, 0], buffer[layer, 1], longest) for layer in range(layers)])
    return cache, torch.tensor(padding)


def unpack(cache: Cache, row: int, begin: int) -> torch.Tensor:
    """The state (L, 2, H, T, D) of one row from position `begin` on, copied out of the buffer."""
    layers: list[Any] = cache.layers
    return torch.stack([torch.stack([layer.keys[row, :, begin:], layer.values[row, :, begin:]]) for layer in layers])
