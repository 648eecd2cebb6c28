"""What a search asks of whatever runs the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from lora_cot.engines.interleave import Interleave, Looking, Shown
from lora_cot.formats import CotFormat
from lora_cot.types import Sample


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0


@dataclass(frozen=True)
class Ask:
    """Continuations of one state that are asked for."""

    state: Any
    seeds: Sequence[str]
    """One candidate each; the same seed draws the same text, whatever else is in the batch."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Strings that end a candidate, looked for in what it generates only; the string stays in its text."""
    sentences: bool = False
    """It also ends with a sentence."""
    sampling: Sampling = Sampling()
    deadline: float | None = None
    """On `time.monotonic`'s clock: what is not done by then ends as it is."""
    keep_states: bool = True
    """Without, the candidates cannot be continued, and take no memory."""
    look: Looking | None = None
    """How it looks at its images again while it is written; the engine was told to `see`."""


Ended = Literal["stop", "sentence", "end", "length", "deadline", "failed"]
"""How a candidate ended: at a stop string, with a sentence, at the model's end token, at `max_new_tokens`, at the deadline;
or the engine gave none, see `Candidate.problem`."""


@dataclass(frozen=True)
class Candidate:
    """One continuation of a state."""

    text: str
    """The generated text, its stop string included."""
    tokens: int
    logprob: float
    """Sum of the tokens' log-probabilities at temperature 1, in nats; nan where it is not known."""
    ended: Ended
    state: Any
    """Where a further extension goes on from."""
    seconds: float = 0.0
    """From the ask to its end."""
    problem: str = ""
    """Why there is none, if it failed."""
    tokens_shared: bool = False
    """Its tokens were not counted: they are its share of those of several candidates."""
    is_copy: bool = False
    """It was generated once, for another candidate of its ask."""
    looks: tuple[Shown, ...] = ()
    """What it was shown again while it was written."""

    @property
    def mean_logprob(self) -> float:
        """Log-probability of a token on average: comparable between lengths."""
        return self.logprob / max(self.tokens, 1)

    @property
    def spent(self) -> int:
        """Tokens that were generated for it."""
        return 0 if self.is_copy else self.tokens

    @property
    def likelihood(self) -> float:
        """The same to compare with: the least of all where it is not known."""
        return -math.inf if math.isnan(self.logprob) else self.mean_logprob


class Engine(Protocol):
    """Runs a model for a search. All calls are batched over questions."""

    def for_pass(self, cot_format: CotFormat) -> Engine:
        """The engine with the prompts and the adapter of one pass of a format; nothing is loaded."""

    def plain(self, adapter: bool = True) -> Engine:
        """The same model asked as it is: prompts without stages, with or without its adapter. For judges.

        Raises:
            SearchError: it has no adapter that could be switched off; or it is an encoder-decoder, which can answer nothing
                but what it was trained on.
        """

    def for_search(self) -> Engine:
        """The engine for one search: what it learns of the search's prompts, it forgets with it."""

    def see(self, how: Interleave) -> Interleave:
        """Keep from now on what the images of prompts are, for asks that look.

        Returns:
            The same with what only the model says: how many patches, and what the released code does on it.

        Raises:
            SearchError: it cannot show patches again, or has no such layers or heads.
        """

    def start(self, samples: Sequence[Sample]) -> list[Any]:
        """A state for each prompt, its image encoded and its text prefilled once."""

    def extend(self, asks: Sequence[Ask]) -> list[list[Candidate]]:
        """For each ask as many candidates as it has seeds, in their order."""

    def choose(self, samples: Sequence[Sample], options: Sequence[str], deadline: float | None = None) -> list[list[float]]:
        """For each prompt the log-probability of each option as the first thing that is answered.

        Args:
            samples: the prompts; there may be none.
            options: that are told apart.
            deadline: on `time.monotonic`'s clock. What is not told by then may be nan; an engine whose calls end by
                themselves may ignore it.

        Raises:
            SearchError: it cannot tell odds, whatever the prompts; or not those of these options.
        """
