"""`evaluate`: a model and a strategy on a benchmark, batch by batch."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_cot.checkpoints.opening import Opened, Quantization, open_model
from lora_cot.data.rows import shortened
from lora_cot.errors import DataError, Problem
from lora_cot.evaluation.benchmarks import Benchmark, Wanted, check_split, find
from lora_cot.evaluation.metrics import Share
from lora_cot.evaluation.remote import OpenedRemote, Server, check_format, engine_of, in_format, open_remote
from lora_cot.evaluation.summary import Judged, Summary, reasoning, summarise
from lora_cot.formats import CotFormat
from lora_cot.recipe import Recipe
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.strategies import answer
from lora_cot.search.trace import Completion
from lora_cot.types import Sample


@dataclass(frozen=True)
class EvalReport:
    """What a strategy got right, and what it cost."""

    benchmark: str
    split: str
    model: str
    strategy: str
    summary: Summary
    format_validity: Share
    left_out: int
    """Problems of questions that cannot be asked, such as an image that is not there; they count nowhere."""
    tokens_per_question: float
    """Tokens generated, those of lost candidates included."""
    kept_tokens_per_question: float
    judge_calls_per_question: float
    seconds_per_question: float

    @property
    def accuracy(self) -> Share:
        """Share of right answers."""
        return self.summary.accuracy

    @property
    def groups(self) -> dict[str, Share]:
        """The same by group."""
        return self.summary.groups

    @property
    def unanswered(self) -> int:
        """Questions without an answer; they count as wrong."""
        return self.summary.unanswered

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        plain = {key: value for key, value in vars(self).items() if not isinstance(value, Share | Summary)}
        shares = {"accuracy": self.accuracy.to_json(), "format_validity": self.format_validity.to_json()}
        groups = {name: share.to_json() for name, share in self.groups.items()}
        told = {key: getattr(self.summary, key) for key in ("metric", "unanswered", "rouge_l", "failure_modes")}
        return {**plain, **shares, **told, "groups": groups}


def evaluate(
    model: str,
    benchmark: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    search: dict[str, Any] | None = None,
    output: Path | None = None,
    quantization: Quantization = "auto",
    data: str | None = None,
    server: Server | None = None,
    format_name: str | None = None,
) -> EvalReport:
    """A model on a benchmark.

    Args:
        model: run, adapter, merged folder or hub id.
        benchmark: name of a benchmark; the recipe's if not given, its split and limit too.
        split: one of its splits; its first if not given.
        limit: first so many questions.
        search: keys of the recipe's search section to change.
        output: JSONL with each question's text, answer and verdict.
        quantization: how the base is loaded.
        data: where the benchmark's files are; where the recipe's data are, if not given and they are the same questions.
        server: what runs the model, if not this process; of `model` its recipe is read then, and no weights.
        format_name: a built-in format to ask in; the recipe's if not given; see `in_format`.

    Raises:
        RunError, DataError: no such benchmark, split or model, or none of its questions can be asked; see `open_remote`.
    """
    if benchmark is not None:
        check_split(benchmark, split)  # before a model is loaded for nothing
    check_format(format_name)
    opened = _open(model, quantization, server, format_name)
    recipe, told = opened.recipe, opened.recipe.evaluation
    if benchmark is None or benchmark == told.benchmark:
        benchmark, split, limit, data = told.benchmark, split or told.split, limit or told.limit, data or told.data
    chosen, split = find(benchmark), check_split(benchmark, split)
    config = SearchSection.model_validate({**recipe.search.model_dump(), **(search or {})})
    samples, left_out = _questions(opened, benchmark, Wanted(split, limit, data, keys=_keys(recipe, chosen.source)))
    begin = time.perf_counter()
    completions = _answer_all(opened, samples, config)
    seconds = time.perf_counter() - begin
    judged = _judged(chosen, samples, completions, recipe.format.build())
    if output is not None:
        _write(output, judged, completions)
    return EvalReport(
        benchmark,
        split,
        model,
        config.strategy,
        summarise(chosen, judged),
        Share(sum(c.parsed.outcome == "complete" for c in completions), len(completions)),
        left_out,
        *_costs(completions),
        seconds / len(completions),
    )


def _costs(completions: Sequence[Completion]) -> tuple[float, float, float]:
    """Tokens, kept tokens and judge calls of a question."""
    sums = (sum(getattr(c, cost) for c in completions) for cost in ("generated_tokens", "kept_tokens", "judge_calls"))
    generated, kept, judged = (total / len(completions) for total in sums)
    return generated, kept, judged


def _open(model: str, quantization: Quantization, server: Server | None, format_name: str | None) -> Opened | OpenedRemote:
    if server:
        opened: Opened | OpenedRemote = open_remote(model, server, format_name)
    else:
        loaded = open_model(model, quantization)
        opened = loaded if format_name is None else replace(loaded, recipe=in_format(loaded.recipe, format_name))
    print(opened.said, file=sys.stderr)
    return opened


def _judged(
    chosen: Benchmark, samples: Sequence[Sample], completions: Sequence[Completion], cot_format: CotFormat
) -> list[Judged]:
    return [
        Judged(sample, chosen.judge(c.parsed.answer, sample), reasoning(c.parsed, cot_format))
        for c, sample in zip(completions, samples, strict=True)
    ]


def _questions(opened: Opened | OpenedRemote, name: str, wanted: Wanted) -> tuple[list[Sample], int]:
    """What can be asked, and how many problems the rest has, which are told."""
    found, most_images = find(name).load(wanted), opened.family.most_images
    limit = math.inf if most_images is None else most_images
    samples = [sample for sample in found.samples if len(sample.images) <= limit]
    what = f"more images than the {most_images} that this model sees"
    problems = [*found.problems, *(Problem(s.id, what) for s in found.samples if len(s.images) > limit)]
    if problems:
        print("questions that are left out:", *shortened(problems), sep="\n  ", file=sys.stderr)
    if not samples:
        raise DataError([Problem(name, "none of its questions can be asked"), *shortened(problems)])
    return samples, len(problems)


def check_questions(recipe: Recipe) -> None:
    """See that a recipe's evaluation has questions that can be asked, before anything is trained for it.

    Raises:
        RunError, DataError: see `evaluate`.
    """
    told = recipe.evaluation
    chosen = find(told.benchmark)
    wanted = Wanted(check_split(told.benchmark, told.split), told.limit, told.data, keys=_keys(recipe, chosen.source))
    if not chosen.load(wanted).samples:
        raise DataError(Problem("evaluation", f"none of the questions of {told.benchmark} can be asked", "check its files"))


def _keys(recipe: Recipe, source: str | None) -> dict[str, Any]:
    """Keys of the recipe's own section of that source: where the files are, what a question and its rationale hold."""
    sections = (section for section in (*recipe.data.eval, *recipe.data.train) if section.source == source)
    return next((section.model_dump() for section in sections), {})


def _answer_all(opened: Opened | OpenedRemote, samples: Sequence[Sample], config: SearchSection) -> list[Completion]:
    from tqdm import tqdm

    cot_format = opened.recipe.format.build().spelled(opened.family.tag_style)
    engine = engine_of(opened, cot_format)
    size = opened.recipe.evaluation.batch_size
    if isinstance(opened, Opened):
        opened.backbone.prepare(samples, opened.recipe.data.max_pixels)
    completions: list[Completion] = []
    with tqdm(total=len(samples), desc=config.strategy, unit="question", file=sys.stderr, mininterval=2) as bar:
        for begin in range(0, len(samples), size):
            completions += answer(engine, cot_format, samples[begin : begin + size], config)
            bar.update(len(completions) - bar.n)
    return completions


def _write(output: Path, judged: Sequence[Judged], completions: Sequence[Completion]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", encoding="utf-8") as file:
        for one, completion in zip(judged, completions, strict=True):
            row = {
                "id": one.sample.id,
                "question": one.sample.last.question,
                "output": completion.text,
                "stages": {stage.name: stage.text for stage in completion.parsed.stages},
                "answer": one.verdict.answer,
                "gold": one.sample.last.answer,
                "right": one.verdict.credit == 1,
                "format": completion.parsed.outcome,
                "stopped": completion.stopped,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
