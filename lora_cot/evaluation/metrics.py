"""Figures with their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Metric = Literal["accuracy", "ROUGE-L", "sentence chrF"]
"""What a benchmark's credits add up to: the share of right answers, or the mean of a score, 0 to 1."""


def rouge_l(gold: str, text: str) -> float:
    """F1 of ROUGE-L, stemmed, 0 to 1. Its words are Latin letters and digits: texts without any have 0."""
    return float(_rouge().score(gold, text)["rougeL"].fmeasure)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    correct: float
    """Whole, unless a benchmark gives parts of a point; the interval then takes them for so many right answers."""
    total: int

    @property
    def value(self) -> float:
        """The share; 0 of nothing is 0."""
        return self.correct / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (Wilson 1927), which holds near 0 and 1 and for few questions."""
        if not self.total:
            return 0.0, 1.0
        z, n, p = 1.959964, self.total, self.value
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict[str, object]:
        """For a report."""
        return {"correct": self.correct, "total": self.total, "accuracy": self.value, "interval": self.interval}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} [{low:.1%}, {high:.1%}] of {self.total}"
