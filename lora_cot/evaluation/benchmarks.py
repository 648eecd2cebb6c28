"""Benchmarks by name: where the questions come from, when an answer is right, what to tell apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_cot.data import (
    ai2d,
    aokvqa,
    hallusionbench,
    llava_wild,
    m3cot,
    mathvista,
    mmbench,
    mmmu,
    mmstar,
    mmvet,
    multi30k,
    scienceqa,
)
from lora_cot.data.rows import Collected
from lora_cot.errors import Problem, RunError, nearest
from lora_cot.evaluation import verdicts
from lora_cot.evaluation.grading import MATHVISTA_GRADER, MMVET_GRADER, Grader
from lora_cot.evaluation.m3cot import carried
from lora_cot.evaluation.metrics import Metric
from lora_cot.evaluation.questions import Load, of_aokvqa, of_files, of_shapes, of_source
from lora_cot.evaluation.translation import check_installed, corpus_figures
from lora_cot.evaluation.verdicts import Verdict
from lora_cot.recipe.sources import LlavaWildSource, M3cotSource, Multi30kSource, ScienceqaSource
from lora_cot.types import Sample

SCIENCEQA_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
SCIENCEQA_CLASSES = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")


@dataclass(frozen=True)
class Benchmark:
    """A set of questions with a rule for right and wrong."""

    splits: Sequence[str]
    """The first one is the default."""
    load: Load
    judge: Callable[[str | None, Sample], Verdict]
    """Of the text of an answer, None where there is none."""
    groups: Callable[[Sample], Sequence[str]] = lambda _: ()
    """Names of the groups a question counts to."""
    classes: Sequence[str] = ()
    """Groups that are told in this order, even where no question counts to one."""
    source: str | None = None
    """Name of the recipe's source of the same questions."""
    counts: Callable[[Sample], bool] = lambda _: True
    """Whether a question counts to the accuracy, or to its groups alone."""
    together: Mapping[str, Callable[[Sample], str | None]] = field(default_factory=dict)
    """Further shares by name: of sets of questions, told apart by what is given here, those that are right in each. None:
    the question is in no such set.
    """
    metric: Metric = "accuracy"
    """What the mean of the credits is."""
    figures: Callable[[Sequence[tuple[str, Sample]]], dict[str, float]] | None = None
    """Of all answers together, with their questions, what is no mean of credits."""
    check_installed: Callable[[], None] = lambda: None
    """Raises what `judge` would raise without a package that it needs."""
    carried: Callable[[Path], Collected] | None = None
    """The questions that a file of predictions in the benchmark's own form brings along."""
    grader: Grader | None = None
    """How a judge that is named decides in the rule's place."""


def _scienceqa_groups(sample: Sample) -> Sequence[str]:
    """Its nine classes (Lu et al. 2022, table 3): questions with a hint and an image count to TXT and to IMG."""
    meta = sample.meta
    context = [name for name, has in (("TXT", meta["hint"]), ("IMG", meta["has_image"])) if has] or ["NO"]
    grade = int(str(meta["grade"]).removeprefix("grade"))
    return (SCIENCEQA_SUBJECTS[str(meta["subject"])], *context, "G1-6" if grade <= 6 else "G7-12", "Avg")


def _m3cot_groups(sample: Sample) -> Sequence[str]:
    return tuple(dict.fromkeys((str(sample.meta["domain"]), str(sample.meta["topic"]), "Avg")))


def _mmvet_groups(sample: Sample) -> Sequence[str]:
    """Its capabilities, and the combination of them that it takes."""
    names: Sequence[str] = sample.meta["capabilities"]  # type: ignore[assignment]
    return (*names, "only " + " + ".join(name for name in mmvet.CAPABILITIES if name in names))


def _mathvista_groups(sample: Sample) -> Sequence[str]:
    meta = sample.meta
    skills = (f"skill: {name}" for name in meta["skills"])  # type: ignore[attr-defined]
    return ("with options" if meta["options"] else "free form", f"grade: {meta['grade']}", f"task: {meta['task']}", *skills)


def _named(*keys: str) -> Callable[[Sample], Sequence[str]]:
    """The groups that a question's fields of these names hold."""
    return lambda sample: tuple(str(sample.meta[key]) for key in keys)


def _within(outer: str, inner: str) -> Callable[[Sample], Sequence[str]]:
    """A group, and one inside it."""
    return lambda sample: (str(sample.meta[outer]), f"{sample.meta[outer]} · {sample.meta[inner]}")


BENCHMARKS = {
    "shapes": Benchmark(
        ("test", "validation", "train"),
        of_shapes,
        verdicts.of_short_answer,
        lambda sample: (str(sample.meta["skill"]), "one step" if sample.meta["steps"] == 1 else "more than one step"),
    ),
    "scienceqa": Benchmark(
        scienceqa.SPLITS,
        of_source(ScienceqaSource, scienceqa.questions),
        verdicts.of_option,
        _scienceqa_groups,
        SCIENCEQA_CLASSES,
        source="scienceqa",
    ),
    "aokvqa": Benchmark(
        aokvqa.SPLITS,
        of_aokvqa,
        verdicts.of_aokvqa,
        lambda sample: ("multiple choice" if sample.choices else "direct answer",),
        ("multiple choice", "direct answer"),
        source="aokvqa",
        counts=lambda sample: bool(sample.choices),
    ),
    "m3cot": Benchmark(
        m3cot.SPLITS,
        of_source(M3cotSource, m3cot.questions),
        verdicts.of_m3cot,
        _m3cot_groups,
        source="m3cot",
        carried=carried,
    ),
    "llava_wild": Benchmark(
        llava_wild.SPLITS,
        of_source(LlavaWildSource, llava_wild.questions),
        verdicts.of_llava_wild,
        lambda sample: (str(sample.meta["category"]), "Avg"),
        source="llava_wild",
        metric="ROUGE-L",
    ),
    "multi30k": Benchmark(
        multi30k.SPLITS,
        of_source(Multi30kSource, multi30k.questions),
        verdicts.of_translation,
        _named("language"),
        source="multi30k",
        metric="sentence chrF",
        figures=corpus_figures,
        check_installed=check_installed,
    ),
    "mmmu": Benchmark(mmmu.SPLITS, of_files("mmmu", mmmu.questions), verdicts.of_option, _named("subject", "difficulty")),
    "mmstar": Benchmark(mmstar.SPLITS, of_files("mmstar", mmstar.questions), verdicts.of_option, _within("skill", "axis")),
    "mmbench": Benchmark(
        mmbench.SPLITS,
        of_files("mmbench", mmbench.questions),
        verdicts.of_option,
        _within("ability", "category"),
        counts=mmbench.is_first,
        together={"circular": lambda sample: str(sample.meta["question"])},
    ),
    "ai2d": Benchmark(ai2d.SPLITS, of_files("ai2d", ai2d.questions), verdicts.of_option),
    "mathvista": Benchmark(
        mathvista.SPLITS,
        of_files("mathvista", mathvista.questions),
        verdicts.of_mathvista,
        _mathvista_groups,
        grader=MATHVISTA_GRADER,
    ),
    "mmvet": Benchmark(
        mmvet.SPLITS,
        of_files("mmvet", mmvet.questions),
        verdicts.of_reference,
        _mmvet_groups,
        grader=MMVET_GRADER,
    ),
    "hallusionbench": Benchmark(
        hallusionbench.SPLITS,
        of_files("hallusionbench", hallusionbench.questions),
        verdicts.of_hallusionbench,
        _within("category", "subcategory"),
        together={"fAcc": hallusionbench.figure_of, "qAcc": lambda sample: str(sample.meta["pair"])},
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


def check_split(name: str, split: str | None) -> str:
    """The split, or the benchmark's first one.

    Raises:
        RunError: it has no such split.
    """
    splits = find(name).splits
    if split is not None and split not in splits:
        raise RunError(Problem("--split", f"{name} has no split '{split}'", f"allowed: {', '.join(splits)}"))
    return split or splits[0]
