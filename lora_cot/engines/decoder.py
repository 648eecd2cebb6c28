"""What the local engine needs of a model that writes token by token, whether it has one text or two."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lora_cot.data.labels import Encoded
from lora_cot.engines.cache import KeyValues


@dataclass(frozen=True)
class State:
    """A text that can be continued."""

    kv: KeyValues
    """Keys and values of all tokens but the last."""
    last: int
    """The last token; it is fed when the text is continued."""
    ahead: int = 0
    """What a token's position is ahead of its number in the text."""
    held: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """(1, 1, …) inputs that every further token is fed with too."""
    begun: bool = False
    """The last token was generated."""


class Rows(ABC):
    """Rows that decode together over one cache."""

    @abstractmethod
    def step(self) -> torch.Tensor:
        """Feed each row's last token; returns logits (rows, V) of the next."""

    @abstractmethod
    def feed(self, tokens: list[int], kept: list[int] | None) -> None:
        """The tokens to feed next; with `kept`, all other rows leave."""

    @abstractmethod
    def state(self, place: int, last: int) -> State:
        """One row as it is after its last step, out of the batch."""


class Decoder(ABC):
    """A model with what is known of its kind."""

    @abstractmethod
    def prefill(self, prompts: Sequence[Encoded]) -> list[State]:
        """Prompts that may share a batch, read."""

    @abstractmethod
    def next_logits(self, prompts: Sequence[Encoded], begun: Sequence[int]) -> torch.Tensor:
        """(B, V) of the token after each prompt and the same beginning of an answer."""

    @abstractmethod
    def rows(self, states: Sequence[State], forks: Sequence[int]) -> Rows:
        """Rows that decode together: of each state, so many; all of one `shape_key`."""
