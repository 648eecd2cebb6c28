"""Benchmarks by name: where the questions come from, when an answer is right, what to tell apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from lora_cot.data import aokvqa, llava_wild, m3cot, mmmu, multi30k, scienceqa, shapes
from lora_cot.data.questions import Use
from lora_cot.data.rows import Collected
from lora_cot.errors import Problem, RunError, nearest
from lora_cot.evaluation.m3cot import carried, chosen_letter
from lora_cot.evaluation.metrics import Metric, rouge_l
from lora_cot.evaluation.translation import corpus_figures, sentence_chrf
from lora_cot.formats.answers import letter, read_option, same
from lora_cot.recipe.sources import AokvqaSource, LlavaWildSource, M3cotSource, Multi30kSource, QuestionSource, ScienceqaSource
from lora_cot.types import Sample

SourceType = TypeVar("SourceType", bound=QuestionSource)
SCIENCEQA_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
SCIENCEQA_CLASSES = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")


@dataclass(frozen=True)
class Wanted:
    """Which of a benchmark's questions, and what for."""

    split: str
    limit: int | None = None
    """The first so many that can be used."""
    data: str | None = None
    """Where its files are."""
    use: Use = "evaluation"
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the source's section: as a recipe that was trained on it has them."""


@dataclass(frozen=True)
class Verdict:
    """What was read in an answer, and what it is worth."""

    answer: str | None
    """None: no answer; it is wrong, and never guessed."""
    credit: float
    """1 right, 0 wrong; a benchmark may give parts."""


@dataclass(frozen=True)
class Benchmark:
    """A set of questions with a rule for right and wrong."""

    splits: Sequence[str]
    """The first one is the default."""
    load: Callable[[Wanted], Collected]
    """Questions with gold answers, and what is wrong with those that cannot be used."""
    judge: Callable[[str | None, Sample], Verdict]
    """Of the text of an answer, None where there is none."""
    groups: Callable[[Sample], Sequence[str]]
    """Names of the groups a question counts to."""
    classes: Sequence[str] = ()
    """Groups that are told in this order, even where no question counts to one."""
    source: str | None = None
    """Name of the recipe's source of the same questions."""
    counts: Callable[[Sample], bool] = lambda _: True
    """Whether a question counts to the accuracy, or to its groups alone."""
    metric: Metric = "accuracy"
    """What the mean of the credits is."""
    figures: Callable[[Sequence[tuple[str, Sample]]], dict[str, float]] | None = None
    """Of all answers together, with their questions, what is no mean of credits."""
    carried: Callable[[Path], Collected] | None = None
    """The questions that a file of predictions in the benchmark's own form brings along."""


def _shapes(wanted: Wanted) -> Collected:
    samples = list(shapes.iterate(wanted.split, wanted.limit or 500, seed=0))
    return Collected(samples, total=len(samples))


def _shapes_verdict(text: str | None, sample: Sample) -> Verdict:
    return Verdict(text or None, float(same(text, str(sample.last.answer))))


def _shapes_groups(sample: Sample) -> Sequence[str]:
    return (str(sample.meta["skill"]), "one step" if sample.meta["steps"] == 1 else "more than one step")


def _source(kind: type[SourceType], name: str, wanted: Wanted) -> SourceType:
    """The section of a source for an evaluation: a recipe's own keys, all rows; its image root only with its own path."""
    keys = {key: value for key, value in wanted.keys.items() if key in kind.model_fields}
    if wanted.data is not None:
        keys.pop("image_root", None)
    path = _path(wanted, name)
    return kind.model_validate({**keys, "source": name, "path": path, "split": wanted.split, "limit": None})


def _path(wanted: Wanted, name: str) -> str:
    path = wanted.data or wanted.keys.get("path")
    if path is None:
        raise RunError(Problem("--data", f"the questions of {name} do not come along", "name the folder of its files"))
    return str(path)


def _first(found: Collected, limit: int | None) -> Collected:
    return replace(found, samples=found.samples[:limit])


def _scienceqa(wanted: Wanted) -> Collected:
    section = _source(ScienceqaSource, "scienceqa", wanted)
    return _first(scienceqa.questions(section, wanted.use), wanted.limit)


def _scienceqa_groups(sample: Sample) -> Sequence[str]:
    """Its nine classes (Lu et al. 2022, table 3): questions with a hint and an image count to TXT and to IMG."""
    meta = sample.meta
    context = [name for name, has in (("TXT", meta["hint"]), ("IMG", meta["has_image"])) if has] or ["NO"]
    grade = int(str(meta["grade"]).removeprefix("grade"))
    return (SCIENCEQA_SUBJECTS[str(meta["subject"])], *context, "G1-6" if grade <= 6 else "G7-12", "Avg")


def _aokvqa(wanted: Wanted) -> Collected:
    """Each question twice: with its options, and without (its id then ends in `/direct`) unless that is called difficult."""
    section = _source(AokvqaSource, "aokvqa", wanted)
    options, direct = (
        _first(aokvqa.questions(section.model_copy(update={"task": task}), wanted.use), wanted.limit)
        for task in ("multiple_choice", "direct_answer")
    )
    samples = [replace(sample, id=f"{sample.id}/direct") for sample in direct.samples if not sample.meta["difficult"]]
    return replace(options, samples=options.samples + samples)


def _aokvqa_verdict(text: str | None, sample: Sample) -> Verdict:
    """An option's, or for a direct answer min(1, matches / 3) of the ten (its `eval_predictions.py`); case is no matter."""
    if sample.choices:
        return _option_verdict(text, sample)
    plain = _plain(text or "")
    matches = sum(_plain(answer) == plain for answer in sample.meta["direct_answers"])  # type: ignore[attr-defined]
    return Verdict(plain or None, min(1.0, matches / 3) if plain else 0.0)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removeprefix("the answer is ").rstrip(".").rstrip()


def _mmmu(wanted: Wanted) -> Collected:
    return _first(mmmu.questions(_path(wanted, "mmmu"), wanted.split), wanted.limit)


def _option_verdict(text: str | None, sample: Sample) -> Verdict:
    index = read_option(text, sample.choices)
    return Verdict(None if index is None else letter(index), float(index == sample.meta["gold"]))


def _m3cot(wanted: Wanted) -> Collected:
    return _first(m3cot.questions(_source(M3cotSource, "m3cot", wanted), wanted.use), wanted.limit)


def _m3cot_verdict(text: str | None, sample: Sample) -> Verdict:
    chosen = chosen_letter(text or "", sample.choices)
    return Verdict(chosen, float(chosen == sample.last.answer))


def _m3cot_groups(sample: Sample) -> Sequence[str]:
    return tuple(dict.fromkeys((str(sample.meta["domain"]), str(sample.meta["topic"]), "Avg")))


def _llava_wild(wanted: Wanted) -> Collected:
    return _first(llava_wild.questions(_source(LlavaWildSource, "llava_wild", wanted), wanted.use), wanted.limit)


def _llava_wild_verdict(text: str | None, sample: Sample) -> Verdict:
    """ROUGE-L against the reference answer (Gao et al. 2024, ICoT, table 1); there is no right and wrong."""
    said = (text or "").strip() or None
    return Verdict(said, rouge_l(str(sample.last.answer), said or ""))


def _multi30k(wanted: Wanted) -> Collected:
    return _first(multi30k.questions(_source(Multi30kSource, "multi30k", wanted), wanted.use), wanted.limit)


def _multi30k_verdict(text: str | None, sample: Sample) -> Verdict:
    """ChrF against the reference translation; there is no right and wrong."""
    said = (text or "").strip() or None
    return Verdict(said, sentence_chrf(str(sample.last.answer), said or ""))


BENCHMARKS = {
    "shapes": Benchmark(("test", "validation", "train"), _shapes, _shapes_verdict, _shapes_groups),
    "scienceqa": Benchmark(
        scienceqa.SPLITS, _scienceqa, _option_verdict, _scienceqa_groups, SCIENCEQA_CLASSES, source="scienceqa"
    ),
    "aokvqa": Benchmark(
        aokvqa.SPLITS,
        _aokvqa,
        _aokvqa_verdict,
        lambda sample: ("multiple choice" if sample.choices else "direct answer",),
        ("multiple choice", "direct answer"),
        source="aokvqa",
        counts=lambda sample: bool(sample.choices),
    ),
    "mmmu": Benchmark(
        mmmu.SPLITS, _mmmu, _option_verdict, lambda sample: (str(sample.meta["subject"]), str(sample.meta["difficulty"]))
    ),
    "m3cot": Benchmark(m3cot.SPLITS, _m3cot, _m3cot_verdict, _m3cot_groups, source="m3cot", carried=carried),
    "llava_wild": Benchmark(
        llava_wild.SPLITS,
        _llava_wild,
        _llava_wild_verdict,
        lambda sample: (str(sample.meta["category"]), "Avg"),
        source="llava_wild",
        metric="ROUGE-L",
    ),
    "multi30k": Benchmark(
        multi30k.SPLITS,
        _multi30k,
        _multi30k_verdict,
        lambda sample: (str(sample.meta["language"]),),
        source="multi30k",
        metric="sentence chrF",
        figures=corpus_figures,
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
