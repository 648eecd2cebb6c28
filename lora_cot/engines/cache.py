"""Key-value caches: compact tensors for a state at rest, one padded buffer for rows that decode together.

The only file that touches the cache classes of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64
"""Positions that a buffer grows by when it is full."""


@dataclass(frozen=True)
class KeyValues:
    """The cache of one row at rest."""

    grown: torch.Tensor
    """(L, 2, H, T, D) keys and values of the text, in the layers that look at text."""
    still: torch.Tensor | None = None
    """(L', 2, H, P, D) keys and values of the images, in the layers that look at images, or of an encoder-decoder's
    prompt; shared, never copied."""
    padded: bool = False
    """`still` may be padded, since what looks at it has a mask for it."""

    @property
    def shape_key(self) -> tuple[int, ...]:
        """Rows can decode together where this is equal."""
        return () if self.still is None or self.padded else tuple(self.still.shape)


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


class StillLayer(DynamicLayer):
    """A layer over the images of its rows; nothing is ever added to it. Empty if the rows have no image."""

    def __init__(self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None):
        """
        Args:
            keys: (B, H, P, D), a view wherever all rows see the same images.
            values: the same.
        """
        super().__init__()
        if keys is not None and values is not None:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all other rows."""
        if self.is_initialized:
            self.keys, self.values = (_rows_of(tensor, rows) for tensor in (self.keys, self.values))


def _rows_of(tensor: Any, rows: torch.Tensor) -> torch.Tensor:
    shared = tensor.stride(0) == 0  # all rows are one
    return tensor[:1].expand(len(rows), *tensor.shape[1:]) if shared else tensor[rows]


def pack(states: Sequence[KeyValues], forks: Sequence[int], still_layers: frozenset[int]) -> tuple[Cache, torch.Tensor]:
    """A cache of rows that decode together, padded on the left.

    Args:
        states: one for each question; all of one `shape_key`.
        forks: rows that each of them becomes.
        still_layers: places of the layers that look at images.

    Returns:
        The cache, and the number of padded positions of each row.
    """
    grown = [state.grown for state in states]
    longest = max(state.shape[3] for state in grown)
    layers, _, heads, _, width = grown[0].shape
    rows = sum(forks)
    buffer = grown[0].new_zeros((layers, 2, rows, heads, longest + ROOM, width))
    padding, row = [], 0
    for state, count in zip(grown, forks, strict=True):
        begin = longest - state.shape[3]
        buffer[:, :, row : row + count, :, begin:longest] = state.unsqueeze(2)
        padding += [begin] * count
        row += count
    text = iter([BufferedLayer(keys, values, longest) for keys, values in buffer])
    images = iter(_still(states, forks, len(still_layers)))
    total = range(layers + len(still_layers))
    cache = Cache(layers=[next(images) if place in still_layers else next(text) for place in total])
    return cache, torch.tensor(padding)


def pack_prompts(states: Sequence[KeyValues], forks: Sequence[int]) -> tuple[Cache, torch.Tensor]:
    """A cache of what the rows of an encoder-decoder look at, padded on the right, and each row's own length.

    Args:
        states: one for each question.
        forks: rows that each of them becomes; those of a single question share one copy.
    """
    prompts = [state.still for state in states if state.still is not None]
    lengths = [prompt.shape[3] for prompt in prompts]
    padded = [torch.nn.functional.pad(prompt, (0, 0, 0, max(lengths) - prompt.shape[3])) for prompt in prompts]
    layers = len(padded[0])
    filled = [KeyValues(state.grown, prompt) for state, prompt in zip(states, padded, strict=True)]
    rows = [length for length, count in zip(lengths, forks, strict=True) for _ in range(count)]
    return Cache(layers=list(_still(filled, forks, layers))), torch.tensor(rows)


def _still(states: Sequence[KeyValues], forks: Sequence[int], layers: int) -> list[StillLayer]:
    found = [(state.still, count) for state, count in zip(states, forks, strict=True) if state.still is not None]
    if not found:
        return [StillLayer() for _ in range(layers)]
    made = []
    for layer in range(layers):
        spread = [[still[layer, side].expand(count, *still.shape[2:]) for still, count in found] for side in (0, 1)]
        made.append(StillLayer(*(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in spread)))
    return made


def keep_rows(cache: Cache, rows: torch.Tensor) -> None:
    """Drop all other rows of a packed cache."""
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keep(rows)


def unpack(cache: Cache, row: int, begin: int, still_layers: frozenset[int], still: torch.Tensor | None = None) -> KeyValues:
    """The state of one row from position `begin` on, copied out of the buffer.

    Args:
        cache: of a batch.
        row: its place in the batch.
        begin: first position that is not padding.
        still_layers: places of the layers that look at images.
        still: their keys and values, if they are known already; else they are taken from the cache.
    """
    layers: list[Any] = cache.layers
    text = [layer for place, layer in enumerate(layers) if place not in still_layers]
    grown = torch.stack([torch.stack([layer.keys[row, :, begin:], layer.values[row, :, begin:]]) for layer in text])
    if still is None and still_layers:
        images = [layers[place] for place in sorted(still_layers) if place < len(layers) and layers[place].is_initialized]
        if images:
            still = torch.stack([torch.stack([layer.keys[row], layer.values[row]]) for layer in images])
    return KeyValues(grown, still)
