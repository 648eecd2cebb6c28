"""What a search did: every candidate, score, verdict and cost, as plain values that turn into JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from lora_cot.formats import Parsed


@dataclass(frozen=True)
class TracedCandidate:
    """One text that was drawn."""

    text: str
    tokens: int
    score: float | None
    """In the scorer's unit: mean log-probability in nats, or comparisons won. None: it was not in the contest."""
    mean_logprob: float
    closed: bool
    chosen: bool


@dataclass(frozen=True)
class Comparison:
    """Two candidates before a judge."""

    first: int
    second: int
    margin: float
    """Log-odds for the first, averaged over both orders."""
    flipped: bool
    """The verdict changed with the order, or was even: neither is preferred, the likelier text wins."""
    winner: int


@dataclass(frozen=True)
class TracedStage:
    """One step of a search; stage None is a whole text drawn at once."""

    stage: str | None
    candidates: tuple[TracedCandidate, ...]
    comparisons: tuple[Comparison, ...] = ()


@dataclass
class Completion:
    """One answered question."""

    sample_id: str
    text: str
    parsed: Parsed
    stopped: str = "complete"
    """complete, or why the search ended early."""
    trace: list[TracedStage] = field(default_factory=list)
    kept_tokens: int = 0
    """Tokens of the returned text."""
    generated_tokens: int = 0
    """Tokens of all candidates."""
    judge_calls: int = 0
    """Judge prompts that were run; each order is one."""
    seconds: float = 0.0
    """Share of the batch's wall time."""
