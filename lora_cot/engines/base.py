"""What a search asks of whatever runs the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lora_cot.formats import CotFormat
from lora_cot.types import Sample


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0


@dataclass(frozen=True)
class Candidate:
    """One continuation of a state."""

    text: str
    """The generated text, its stop string included."""
    tokens: int
    logprob: float
    """Sum of the tokens' log-probabilities at temperature 1, in nats."""
    closed: bool
    """It ended as it should: at the stop string, or at the end token where no stop string was asked for."""
    state: Any
    """Where a further extension goes on from."""

    @property
    def mean_logprob(self) -> float:
        """Log-probability of a token on average: comparable between lengths."""
        return self.logprob / max(self.tokens, 1)


class Engine(Protocol):
    """Runs a model for a search. All calls are batched over questions."""

    def for_pass(self, cot_format: CotFormat) -> Engine:
        """The engine with the prompts and the adapter of one pass of a format; nothing is loaded."""

    def start(self, samples: Sequence[Sample]) -> list[Any]:
        """A state for each prompt, its image encoded and its text prefilled once."""

    def extend(
        self,
        states: Sequence[Any],
        seeds: Sequence[Sequence[str]],
        stop: str | None,
        max_new_tokens: int,
        sampling: Sampling,
        keep_states: bool = True,
    ) -> list[list[Candidate]]:
        """For each state as many candidates as it has seeds; the same seed draws the same text in any batch.

        Without `keep_states` the candidates cannot be continued, and take no memory.
        """

    def choose(self, samples: Sequence[Sample], options: Sequence[str], adapter: bool = True) -> list[list[float]]:
        """For each prompt the log-probability of each option as the first thing that is answered."""
