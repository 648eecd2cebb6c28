"""What judged answers amount to: the same figures for a model that is run and for a file that was made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_cot.evaluation.benchmarks import Benchmark
from lora_cot.evaluation.metrics import Metric, Share, rouge_l
from lora_cot.evaluation.verdicts import Verdict
from lora_cot.formats import CotFormat, Parsed
from lora_cot.types import Sample

RIGHT_RATIONALE = 0.9
"""ROUGE-L from which a rationale counts as right. The bound is ours: Multimodal-CoT's authors read fifty errors by hand."""


@dataclass(frozen=True)
class Judged:
    """One answered question."""

    sample: Sample
    verdict: Verdict
    rationale: str | None
    """Text of the reasoning, where the answer has some."""


@dataclass(frozen=True)
class Summary:
    """Figures over judged answers."""

    accuracy: Share
    """Of right answers; or what `metric` says."""
    groups: dict[str, Share]
    unanswered: int
    """Questions in which no answer could be read; they count as wrong."""
    rouge_l: float | None
    """Mean F1 of ROUGE-L, stemmed, 0 to 1, over questions with a gold rationale; no rationale counts as 0. None where no
    answer has any, or no question. Where the metric is ROUGE-L, that of the answers."""
    failure_modes: dict[str, dict[str, int]] | None
    """Questions with a gold rationale by rationale_right, rationale_wrong and answer_right, answer_wrong."""
    metric: Metric = "accuracy"
    """What the shares are."""
    figures: dict[str, float] = field(default_factory=dict)
    """Further ones by name, of all answers together; see `Benchmark.figures`."""

    def lines(self) -> list[tuple[str, Any]]:
        """For people."""
        rows: list[tuple[str, Any]] = [(self.metric, self.accuracy)]
        rows += [(f"  {name}", share) for name, share in self.groups.items()]
        rows += [(name, f"{figure:.2f}") for name, figure in self.figures.items()]
        rows.append(("unanswered", self.unanswered))
        if self.rouge_l is not None and self.metric == "accuracy":
            rows.append(("ROUGE-L of rationales", f"{100 * self.rouge_l:.2f}"))
        for rationale, answers in (self.failure_modes or {}).items():
            told = ", ".join(f"{answer.replace('_', ' ')} {count}" for answer, count in answers.items())
            rows.append((f"  {rationale.replace('_', ' ')}", told))
        return rows


def reasoning(parsed: Parsed, cot_format: CotFormat) -> str | None:
    """The text of what led to the answer; None where there is none."""
    return "\n".join(cot_format.reasoning(parsed)) or None


@dataclass(frozen=True)
class Counted:
    """What of an answered question is summed up."""

    credit: float
    counts: bool
    """See `Benchmark.counts`."""
    groups: Sequence[str]
    sets: Mapping[str, str | None]
    """The set that it belongs to, by the names of `Benchmark.together`."""


def counted_of(benchmark: Benchmark, one: Judged) -> Counted:
    """What of a judged answer is summed up."""
    sets = {name: key(one.sample) for name, key in benchmark.together.items()}
    return Counted(one.verdict.credit, benchmark.counts(one.sample), list(benchmark.groups(one.sample)), sets)


def shares(benchmark: Benchmark, counted: Sequence[Counted]) -> tuple[Share, dict[str, Share]]:
    """The accuracy, and the shares by group and of sets: classes in the benchmark's order, empty ones too, others by name."""
    credits: dict[str, list[float]] = {name: [] for name in benchmark.classes}
    for one in counted:
        for group in one.groups:
            credits.setdefault(group, []).append(one.credit)
    groups = {name: Share.of(credits[name]) for name in benchmark.classes or sorted(credits)}
    sets = {name: Share.of_sets((one.sets[name], one.credit) for one in counted) for name in benchmark.together}
    return Share.of([one.credit for one in counted if one.counts]), groups | sets


def summarise(benchmark: Benchmark, judged: Sequence[Judged]) -> Summary:
    """The figures of a benchmark's judged answers."""
    counted = [counted_of(benchmark, one) for one in judged]
    explained = [one for one in judged if one.sample.meta.get("rationales")]
    told = any(one.rationale for one in explained)
    scores = _rouge_l(explained) if told else []
    rouge = [one.credit for one in counted if one.counts] if benchmark.metric == "ROUGE-L" else scores
    accuracy, groups = shares(benchmark, counted)
    return Summary(
        accuracy,
        groups,
        sum(one.verdict.answer is None for one in judged),
        sum(rouge) / len(rouge) if rouge else None,
        _failure_modes(explained, scores) if scores else None,
        benchmark.metric,
        benchmark.figures([(one.verdict.answer or "", one.sample) for one in judged]) if benchmark.figures and judged else {},
    )


def _rouge_l(explained: Sequence[Judged]) -> list[float]:
    """F1 of each against the best of its gold rationales."""
    golds: list[Any] = [one.sample.meta["rationales"] for one in explained]
    return [max(rouge_l(gold, one.rationale or "") for gold in of) for one, of in zip(explained, golds, strict=True)]


def _failure_modes(explained: Sequence[Judged], scores: Sequence[float]) -> dict[str, dict[str, int]]:
    table = {f"rationale_{r}": {f"answer_{a}": 0 for a in ("right", "wrong")} for r in ("right", "wrong")}
    for one, score in zip(explained, scores, strict=True):
        rationale = "right" if score >= RIGHT_RATIONALE else "wrong"
        table[f"rationale_{rationale}"][f"answer_{'right' if one.verdict.credit == 1 else 'wrong'}"] += 1
    return table
