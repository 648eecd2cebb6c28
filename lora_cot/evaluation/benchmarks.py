"""Benchmarks by name: where the questions come from, when an answer is right, what to tell apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_cot.data import shapes
from lora_cot.errors import Problem, RunError, nearest
from lora_cot.formats.answers import same
from lora_cot.types import Sample


@dataclass(frozen=True)
class Benchmark:
    """A set of questions with a rule for right and wrong."""

    splits: Sequence[str]
    """The first one is the default."""
    load: Callable[[str, int], list[Sample]]
    """(split, limit) → questions with gold answers."""
    default_limit: int
    is_right: Callable[[str | None, Sample], bool]
    """None, no answer, must be wrong."""
    groups: Callable[[Sample], Sequence[str]]
    """Names of the groups a question counts to."""


def _shapes_groups(sample: Sample) -> Sequence[str]:
    return (str(sample.meta["skill"]), "one step" if sample.meta["steps"] == 1 else "more than one step")


BENCHMARKS = {
    "shapes": Benchmark(
        splits=("test", "validation", "train"),
        load=lambda split, limit: list(shapes.iterate(split, limit, seed=0)),
        default_limit=500,
        is_right=lambda predicted, sample: same(predicted, str(sample.last.answer)),
        groups=_shapes_groups,
    ),
}


def find(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        RunError: there is none.
    """
    if name not in BENCHMARKS:
        raise RunError(Problem("--benchmark", f"no benchmark '{name}'", nearest(name, BENCHMARKS)))
    return BENCHMARKS[name]
