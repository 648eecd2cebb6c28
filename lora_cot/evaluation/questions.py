"""Where a benchmark's questions come from: its own files, or those of a recipe's source of the same questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lora_cot.data import aokvqa, shapes
from lora_cot.data.questions import Use
from lora_cot.data.rows import Collected
from lora_cot.errors import Problem, RunError
from lora_cot.recipe.sources import AokvqaSource, QuestionSource


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


Load = Callable[[Wanted], Collected]
"""Questions with gold answers, and what is wrong with those that cannot be used."""


def of_source(kind: type[QuestionSource], questions: Callable[[Any, Use], Collected]) -> Load:
    """What loads the questions of a recipe's source.

    Args:
        kind: the source's section.
        questions: what its module gives for one.
    """
    return lambda wanted: _first(questions(_section(kind, wanted), wanted.use), wanted.limit)


def of_files(name: str, questions: Callable[[str, str, Use], Collected]) -> Load:
    """What loads the questions of a benchmark that no recipe trains on.

    Args:
        name: of the benchmark.
        questions: what its module gives for a path, a split and a use.
    """
    return lambda wanted: _first(questions(_path(wanted, name), wanted.split, wanted.use), wanted.limit)


def of_shapes(wanted: Wanted) -> Collected:
    """The built-in questions."""
    samples = list(shapes.iterate(wanted.split, wanted.limit or 500, seed=0))
    return Collected(samples, total=len(samples))


def of_aokvqa(wanted: Wanted) -> Collected:
    """Each question twice: with its options, and without (its id then ends in `/direct`) unless that is called difficult."""
    section = _section(AokvqaSource, wanted)
    options, direct = (
        _first(aokvqa.questions(section.model_copy(update={"task": task}), wanted.use), wanted.limit)
        for task in ("multiple_choice", "direct_answer")
    )
    samples = [replace(sample, id=f"{sample.id}/direct") for sample in direct.samples if not sample.meta["difficult"]]
    return replace(options, samples=options.samples + samples)


def _section(kind: type[QuestionSource], wanted: Wanted) -> QuestionSource:
    """The section of a source for an evaluation: a recipe's own keys, all rows; its image root only with its own path."""
    (name,) = kind.model_fields["source"].annotation.__args__  # type: ignore[union-attr]
    keys = {key: value for key, value in wanted.keys.items() if key in kind.model_fields}
    if wanted.data is not None:
        keys.pop("image_root", None)
    return kind.model_validate({**keys, "source": name, "path": _path(wanted, name), "split": wanted.split, "limit": None})


def _path(wanted: Wanted, name: str) -> str:
    path = wanted.data or wanted.keys.get("path")
    if path is None:
        raise RunError(Problem("--data", f"the questions of {name} do not come along", "name the folder of its files"))
    return str(path)


def _first(found: Collected, limit: int | None) -> Collected:
    """The first questions; one that is asked several times over counts once."""
    if limit is None:
        return found
    asked = [sample.meta.get("question", sample.id) for sample in found.samples]
    kept = set(list(dict.fromkeys(asked))[:limit])
    return replace(found, samples=[sample for sample, name in zip(found.samples, asked, strict=True) if name in kept])
