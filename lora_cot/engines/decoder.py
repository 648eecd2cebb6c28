"""What the local engine needs of a model that writes token by token, whether it has one text or two."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from lora_cot.data.labels import Encoded
from lora_cot.engines.cache import Buffer, KeyValues
from lora_cot.engines.interleave import Gaze
from lora_cot.engines.sight import Sight


@dataclass(frozen=True)
class Root:
    """A text that was read."""

    kv: KeyValues
    """Keys and values of all its tokens."""
    ahead: int = 0
    """What a further token's position is ahead of its number in the text."""
    held: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """(1, 1, …) inputs that every further token is fed with too."""
    sight: Sight | None = None
    """Its images, if that was asked for."""


@dataclass(frozen=True)
class State:
    """A text that can be continued."""

    root: Root
    """All tokens but the last."""
    last: int
    """The last token; it is fed when the text is continued."""
    tail: tuple[int, ...] = ()
    """The end of what was generated, the last token included: a stop string or a character may have begun in it."""
    gaze: Gaze | None = None
    """Of a text that looks at its images again."""


@dataclass(frozen=True)
class Prompt:
    """A prompt to read."""

    encoded: Encoded
    root: Root | None = None
    """Its beginning, all images included, if that was read before."""

    @property
    def ids(self) -> list[int]:
        """Tokens that are not read yet."""
        return self.encoded.input_ids[self.root.kv.length if self.root else 0 :]


class Rows(ABC):
    """Rows that decode together over one cache; all of one `KeyValues.shape_key`."""

    def __init__(self, device: torch.device):
        self.device = device
        self.buffer = Buffer()
        self.origins: list[Root] = []
        """What each row began with."""
        self.tokens: list[int] = []
        """What each row is fed with next."""

    @property
    def bytes(self) -> int:
        """That keys and values hold which are the rows' own."""
        return self.buffer.bytes

    def join(self, states: Sequence[State], forks: Sequence[int]) -> None:
        """Add rows at the end: of each state, so many."""
        self.buffer.join([state.root.kv for state in states], forks)
        for state, count in zip(states, forks, strict=True):
            self.origins += [state.root] * count
            self.tokens += [state.last] * count
        self._arrange()

    def keep(self, places: Sequence[int]) -> None:
        """All other rows leave."""
        self.buffer.keep(places)
        self.origins = [self.origins[place] for place in places]
        self.tokens = [self.tokens[place] for place in places]
        if places:
            self._arrange()

    def _arrange(self) -> None:
        """Make anew what changes with the rows, and not from step to step."""
        self.padding = torch.tensor(self.buffer.padding, device=self.device)
        self.is_padded = any(self.buffer.padding)

    @abstractmethod
    def step(self) -> torch.Tensor:
        """Feed each row's token; returns logits (rows, V) of the next."""

    def feed(self, tokens: Sequence[int]) -> None:
        """The tokens to feed next, one for each row."""
        self.tokens = list(tokens)

    def known(self, more: int) -> torch.Tensor:
        """(B, T) mask of what rows have fed, and so many positions more."""
        return (torch.arange(self.buffer.length + more, device=self.device) >= self.padding[:, None]).long()

    def state(self, place: int, last: int, tail: Sequence[int], gaze: Gaze | None = None) -> State:
        """One row as it is after its last step.

        Args:
            place: of the row.
            last: what it is to be fed with next.
            tail: the end of what it generated; patches that were shown are none of it.
            gaze: what it was shown.
        """
        fed = self.buffer.length - self.buffer.padding[place] - self.origins[place].kv.length
        return State(self.root(place, fed), last, tuple(tail), gaze)

    def root(self, place: int, count: int) -> Root:
        """The text that a row began with, and after it the last tokens that it was fed, so many."""
        origin = self.origins[place]
        return replace(origin, kv=origin.kv.then(self.buffer.newest(place, count)))


class Decoder(ABC):
    """A model with what is known of its kind."""

    @abstractmethod
    def read(self, prompts: Sequence[Prompt]) -> list[Root]:
        """Prompts that may share a batch, read."""

    @abstractmethod
    def next_logits(self, prompts: Sequence[Prompt], begun: Sequence[int]) -> torch.Tensor:
        """(B, V) of the token after each prompt and the same beginning of an answer."""

    @abstractmethod
    def opening(self, prompt: Encoded) -> tuple[Encoded, int]:
        """What of a prompt is read before it is continued, and the token that is fed first then."""

    @abstractmethod
    def rows(self) -> Rows:
        """Rows that decode together, none yet."""
