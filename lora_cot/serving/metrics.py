"""What Prometheus is told. No label holds anything that a user wrote."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lora_cot.search.trace import Completion, TracedStage
from lora_cot.serving.room import Load
from lora_cot.serving.tickets import Spent

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def made(kind: type, name: str, text: str, labels: Sequence[str] = (), **keys: object) -> object:
            return kind(f"lora_cot_{name}", text, labels, registry=self._registry, **keys)

        self.requests: Counter = made(Counter, "requests", "Requests by HTTP status.", ("code",))  # type: ignore[assignment]
        self.first: Histogram = made(  # type: ignore[assignment]
            Histogram, "time_to_first_token_seconds", "From a request's arrival to the first text.", buckets=SECONDS
        )
        self.stage: Histogram = made(  # type: ignore[assignment]
            Histogram, "stage_seconds", "Of a stage, from its first candidate to the choice.", ("stage",), buckets=SECONDS
        )
        self.tokens: Counter = made(Counter, "tokens", "Tokens by what became of them.", ("kind",))  # type: ignore[assignment]
        self.failures: Counter = made(Counter, "judge_failures", "Judgements without a verdict.")  # type: ignore[assignment]
        self.comparisons: Counter = made(  # type: ignore[assignment]
            Counter, "judge_comparisons", "Comparisons; flipped: the verdict changed with the order.", ("flipped",)
        )
        self.cancelled: Counter = made(Counter, "cancelled", "Requests whose client left.")  # type: ignore[assignment]
        self._rows: Gauge = made(Gauge, "rows", "Candidates that decode.")  # type: ignore[assignment]
        self._queue: Gauge = made(Gauge, "queue_depth", "Candidates and prompts that wait for the engine.")  # type: ignore[assignment]
        self._limit: Gauge = made(Gauge, "row_limit", "Candidates that may decode: fewer once memory ran out.")  # type: ignore[assignment]
        self._bytes: Gauge = made(  # type: ignore[assignment]
            Gauge, "kv_bytes", "Keys and values: of candidates that decode, and at rest.", ("kind",)
        )
        self._house: Gauge = made(Gauge, "requests_in_progress", "Requests in the house.")  # type: ignore[assignment]
        self._held: Gauge = made(Gauge, "tokens_admitted", "Tokens that they may still take.")  # type: ignore[assignment]

    def answered(self, completions: Sequence[Completion], spent: Spent) -> None:
        """Count what an answer took."""
        kept = sum(completion.kept_tokens for completion in completions)
        self.tokens.labels("kept").inc(kept)
        self.tokens.labels("discarded").inc(max(spent.generated_tokens - kept, 0))
        self.tokens.labels("judge").inc(spent.judge_tokens)
        for completion in completions:
            self.failures.inc(completion.judge_failures)
            for step in completion.trace:
                for comparison in step.comparisons:
                    self.comparisons.labels(str(comparison.flipped).lower()).inc()

    def decided(self, step: TracedStage, stages: Sequence[str]) -> None:
        """Count a step's time under its stage; a label is one of the format's own names."""
        self.stage.labels(step.stage_name if step.stage_name in stages else "all").observe(step.seconds)

    def text(self, load: Load, requests: int, tokens: int) -> bytes:
        """In Prometheus's format."""
        self._rows.set(load.rows)
        self._queue.set(load.waiting)
        self._limit.set(load.row_limit)
        self._bytes.labels("rows").set(load.row_bytes)
        self._bytes.labels("rest").set(load.rest_bytes)
        self._house.set(requests)
        self._held.set(tokens)
        return generate_latest(self._registry)
