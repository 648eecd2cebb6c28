"""Figures with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
    """Whole, unless a benchmark gives parts of a point."""
    total: int
    spread: tuple[float, float] | None = None
    """The bootstrap's 95 % interval of the mean of credits in parts; None of whole ones. One question alone tells of none."""

    @classmethod
    def of(cls, credits: Sequence[float]) -> Share:
        """The sum of credits."""
        import numpy as np

        total, whole = sum(credits), set(credits) <= {0.0, 1.0}
        spread = None if whole else bootstrap(np.asarray(credits, float)) if len(credits) > 1 else (0.0, 1.0)
        return cls(int(total) if float(total).is_integer() else total, len(credits), spread)

    @classmethod
    def of_sets(cls, credits: Iterable[tuple[str | None, float]]) -> Share:
        """Of sets of questions, by the set's name and a question's credit: so many are right in each of theirs.

        A question whose set is None is in none.
        """
        right: dict[str, bool] = {}
        for name, credit in credits:
            if name is not None:
                right[name] = right.get(name, True) and credit == 1
        return cls(sum(right.values()), len(right))

    @property
    def value(self) -> float:
        """The share; 0 of nothing is 0."""
        return self.correct / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (Wilson 1927), which holds near 0 and 1 and for few questions; of parts the `spread`."""
        if self.spread is not None:
            return self.spread
        if not self.total:
            return 0.0, 1.0
        z, n, p = 1.959964, self.total, self.value
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict[str, object]:
        """For a report."""
        return {"correct": self.correct, "total": self.total, "accuracy": self.value, "interval": self.interval}

    @property
    def text(self) -> str:
        """Without how many there are, which a table says once."""
        return str(self).rpartition(" of ")[0]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} [{low:.1%}, {high:.1%}] of {self.total}"


DRAWS = 10_000
"""Of a bootstrap, and of a permutation test."""


@dataclass(frozen=True)
class Paired:
    """How far two lists of credits for the same questions are apart."""

    difference: float
    """Of the means, the second less the first."""
    interval: tuple[float, float]
    """The paired bootstrap's 95 %, over questions."""
    better: int
    """Questions with more credit in the second."""
    worse: int
    p: float
    """Of so great a difference, or a greater one, if both were equally good."""
    test: str
    """Which gives p: McNemar's exact test, or the permutation test."""


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """The second held against the first, question by question.

    Args:
        first: credits, 0 to 1.
        second: those of the same questions in the same order.
    """
    import numpy as np

    apart = np.asarray(second, float) - np.asarray(first, float)
    better, worse = int((apart > 0).sum()), int((apart < 0).sum())
    whole = {*first, *second} <= {0.0, 1.0}
    p = mcnemar(better, worse) if whole else _permutation(apart)
    test = "McNemar's exact test" if whole else "the permutation test"
    return Paired(float(apart.mean()), bootstrap(apart), better, worse, p, test)


def mcnemar(better: int, worse: int) -> float:
    """Two-sided p of McNemar's exact test: as many heads or tails, or more, of so many throws of a coin."""
    throws = better + worse
    ways = tail = 1
    for count in range(1, min(better, worse) + 1):
        ways = ways * (throws - count + 1) // count
        tail += ways
    return min(1.0, 2 * tail / 2**throws)


def bootstrap(values: Any) -> tuple[float, float]:
    """The bootstrap's 95 % interval of a mean.

    Args:
        values: (questions,) as numpy has them.
    """
    import numpy as np

    draws = np.random.default_rng(0)
    means = [values[draws.integers(0, len(values), (100, len(values)))].mean(1) for _ in range(DRAWS // 100)]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def _permutation(apart: Any) -> float:
    """Two-sided p of the permutation test: in how many draws of the differences' signs their sum is as far from 0."""
    import numpy as np

    apart, draws = apart[apart != 0], np.random.default_rng(0)
    sums = [np.abs((draws.integers(0, 2, (100, len(apart))) * 2 - 1) @ apart) for _ in range(DRAWS // 100)]
    as_far = int((np.concatenate(sums) >= abs(apart.sum()) - 1e-9).sum())
    return (1 + as_far) / (1 + DRAWS)
