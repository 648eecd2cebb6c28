"""Key-value caches: shared pieces for a text at rest, one padded buffer for rows that decode together.

The only file that touches the cache classes of transformers.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64
"""Positions that a buffer grows by when it is full."""


@dataclass(frozen=True)
class KeyValues:
    """The cache of one text at rest, in pieces that texts with the same beginning share."""

    pieces: tuple[torch.Tensor, ...]
    """(L, 2, H, T, D) each: keys and values of a stretch of the text, in the layers that look at text; at least one."""
    still: torch.Tensor | None = None
    """(L', 2, H, P, D) keys and values of the images, in the layers that look at images, or of an encoder-decoder's
    prompt; what shares images never copies them."""
    padded: bool = False
    """`still` may be padded, since what looks at it has a mask for it."""

    def __post_init__(self) -> None:
        rests(self)

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return sum(piece.shape[3] for piece in self.pieces)

    @property
    def shape_key(self) -> tuple[int, ...]:
        """Rows can decode together where this is equal."""
        return () if self.still is None or self.padded else tuple(self.still.shape)

    def row_bytes(self, more: int) -> tuple[int, int]:
        """Bytes that a row of a `Buffer` comes to which goes on from this text for so many tokens, and those of what it looks
        at beside its text, where rows have that padded to one length.
        """
        layers, sides, heads, _, width = self.pieces[0].shape
        token = layers * sides * heads * width * self.pieces[0].element_size()
        return token * (self.length + more + ROOM), self.still.nbytes if self.still is not None and self.padded else 0

    @property
    def bytes(self) -> int:
        """Of all of it, shared or not."""
        return sum(part.nbytes for part in self.parts)

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """All tensors."""
        return self.pieces if self.still is None else (*self.pieces, self.still)

    def then(self, piece: torch.Tensor) -> KeyValues:
        """The text with more at its end."""
        return replace(self, pieces=(*self.pieces, piece))

    def at(self, places: Sequence[int]) -> torch.Tensor:
        """(L, 2, H, places, D) of some tokens, copied."""
        return torch.cat(self.pieces, dim=3)[..., list(places), :]

    def cut(self, length: int) -> KeyValues:
        """The text's beginning; what it knows of images stays whole."""
        pieces, left = [self.pieces[0][..., :length, :]], length - self.pieces[0].shape[3]
        for piece in self.pieces[1:]:
            if left > 0:
                pieces.append(piece[..., :left, :])
            left -= piece.shape[3]
        return replace(self, pieces=tuple(pieces))


class Resting(Protocol):
    """What is kept of a text between two steps."""

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """All tensors."""


_AT_REST: weakref.WeakValueDictionary[int, Resting] = weakref.WeakValueDictionary()
"""All that there are; by identity, since tensors cannot be compared."""


def rests(one: Resting) -> None:
    """Count what is kept of a text from now on, as long as somebody holds it."""
    _AT_REST[id(one)] = one


def bytes_at_rest() -> int:
    """Of all texts at rest in this process; what several share is counted once."""
    texts = [text for known in _AT_REST.valuerefs() if (text := known()) is not None]
    storages = [part.untyped_storage() for text in texts for part in text.parts]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class _GrowingLayer(DynamicLayer):
    """A layer's part of a `Buffer`; what is new is written where the buffer has room for it."""

    def show(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        """Look at other tensors (B, H, capacity, D), filled up to a length."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._whole = keys, values
        self._fill(length)

    def _fill(self, length: int) -> None:
        self._length = length
        self.keys, self.values = (whole[..., :length, :] for whole in self._whole)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new positions; returns everything up to them."""
        begin, end = self._length, self._length + key_states.shape[-2]
        self._whole[0][..., begin:end, :] = key_states
        self._whole[1][..., begin:end, :] = value_states
        self._fill(end)
        return self.keys, self.values  # type: ignore[return-value]


class Buffer:
    """Keys and values of rows that grow together: one tensor, padded on the left to the longest row."""

    def __init__(self) -> None:
        self.length = 0
        self.padding: list[int] = []
        """Positions of each row that are padding."""
        self.layers: list[Any] = []
        self._data = torch.empty(0)

    def join(self, states: Sequence[KeyValues], forks: Sequence[int]) -> None:
        """Add rows: of each state, so many."""
        longest = max([self.length, *(state.length for state in states)])
        like = states[0].pieces[0]
        layers, _, heads, _, width = like.shape
        row = len(self.padding)
        data = like.new_zeros((layers, 2, row + sum(forks), heads, longest + ROOM, width))
        if row:
            data[:, :, :row, :, longest - self.length : longest] = self._data[..., : self.length, :]
        self.padding = [padding + longest - self.length for padding in self.padding]
        for state, count in zip(states, forks, strict=True):
            begin = longest - state.length
            self.padding += [begin] * count
            for piece in state.pieces:
                end = begin + piece.shape[3]
                data[:, :, row : row + count, :, begin:end] = piece.unsqueeze(2)
                begin = end
            row += count
        self._show(data, longest)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and what only they needed."""
        padding = [self.padding[row] for row in rows]
        spare = min(padding, default=self.length)
        self.padding = [begin - spare for begin in padding]
        index = torch.tensor(rows, dtype=torch.long, device=self._data.device)
        self._show(self._data[..., spare:, :].index_select(2, index), self.length - spare)

    def reserve(self, count: int) -> None:
        """Make room for so many more positions; called before each forward."""
        if self.length + count > self._data.shape[4]:
            room = [*self._data.shape]
            room[4] = max(ROOM, count)
            self._show(torch.cat([self._data, self._data.new_zeros(room)], dim=4), self.length)

    @property
    def bytes(self) -> int:
        """That it holds; while rows join or leave, or it grows, what it held before is there too."""
        return self._data.nbytes

    def grown(self, count: int) -> None:
        """Each row has so many more positions; called after each forward."""
        self.length += count

    def newest(self, row: int, count: int) -> torch.Tensor:
        """(L, 2, H, count, D) the last positions of a row, copied."""
        return self._data[:, :, row, :, self.length - count : self.length].clone()

    def _show(self, data: torch.Tensor, length: int) -> None:
        self._data, self.length = data, length
        if not self.layers:
            self.layers = [_GrowingLayer() for _ in data]
        for layer, (keys, values) in zip(self.layers, data, strict=True):
            layer.show(keys, values, length)


@dataclass(frozen=True)
class OfRows:
    """Keys, or values, of the images that rows look at: one tensor for all neighbours that share it."""

    parts: Sequence[tuple[torch.Tensor, int]]
    """(H, P, D) and the number of rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, H, P, D), as if each row had its own."""
        return (sum(count for _, count in self.parts), *self.parts[0][0].shape)

    def numel(self) -> int:
        """Elements of all parts."""
        return sum(part.numel() for part, _ in self.parts)


class StillLayer(DynamicLayer):
    """A layer that nothing is ever added to: over the images of its rows, or an encoder-decoder's prompts. It may be empty."""

    def __init__(self, keys: Any = None, values: Any = None):
        """
        Args:
            keys: (B, H, P, D), or `OfRows`.
            values: the same.
        """
        super().__init__()
        if keys is not None:
            self.is_initialized = True
            self.keys, self.values = keys, values


def still_layers(stills: Sequence[torch.Tensor | None], count: int) -> list[StillLayer]:
    """Layers over each row's images, which are not copied.

    Args:
        stills: of each row, (L', 2, H, P, D); all None, or none.
        count: L'.
    """
    if not stills or stills[0] is None:
        return [StillLayer() for _ in range(count)]
    shared = [next(group) for _, group in groupby(stills, id)]
    counts = [len(list(group)) for _, group in groupby(stills, id)]
    made = []
    for layer in range(count):
        keys, values = (OfRows([(s[layer, side], n) for s, n in zip(shared, counts, strict=True)]) for side in (0, 1))  # type: ignore[index]
        made.append(StillLayer(keys, values))
    return made


def prompt_layers(prompts: Sequence[torch.Tensor]) -> tuple[list[StillLayer], torch.Tensor]:
    """Layers over what each row of an encoder-decoder looks at, padded on the right, and each row's own length.

    Args:
        prompts: of each row, (L, 2, H, P, D).
    """
    lengths = [prompt.shape[3] for prompt in prompts]
    padded = [torch.nn.functional.pad(prompt, (0, 0, 0, max(lengths) - prompt.shape[3])) for prompt in prompts]
    one = all(prompt is prompts[0] for prompt in prompts)  # candidates of one question share it
    together = padded[0].unsqueeze(2).expand(-1, -1, len(prompts), -1, -1, -1) if one else torch.stack(padded, dim=2)
    return [StillLayer(keys, values) for keys, values in together], torch.tensor(lengths)


def joined(text: Sequence[Any], images: Sequence[StillLayer], places: frozenset[int]) -> Cache:
    """A cache of layers that look at text and of those, at some places, that look at images."""
    texts, others = iter(text), iter(images)
    total = range(len(text) + len(images))
    return Cache(layers=[next(others) if place in places else next(texts) for place in total])


def taken(cache: Cache, row: int, begin: int, places: frozenset[int]) -> KeyValues:
    """The text of one row of a prefilled cache from position `begin` on, and its images, copied.

    Args:
        cache: of a batch.
        row: its place in the batch.
        begin: first position that is not padding.
        places: of the layers that look at images.
    """
    layers: list[Any] = cache.layers
    text = [layer for place, layer in enumerate(layers) if place not in places]
    piece = torch.stack([torch.stack([layer.keys[row, :, begin:], layer.values[row, :, begin:]]) for layer in text])
    images = [layers[place] for place in sorted(places) if place < len(layers) and layers[place].is_initialized]
    still = torch.stack([torch.stack([layer.keys[row], layer.values[row]]) for layer in images]) if images else None
    return KeyValues((piece,), still)
