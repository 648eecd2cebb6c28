"""`evaluate`: a model and a strategy on a benchmark, batch by batch."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_cot.checkpoints.opening import Opened, Quantization, open_model
from lora_cot.data.rows import shortened
from lora_cot.errors import DataError, Problem
from lora_cot.evaluation.benchmarks import Benchmark, Wanted, check_split, find
from lora_cot.evaluation.metrics import Share
from lora_cot.evaluation.remote import OpenedRemote, Server, engine_of, open_remote
from lora_cot.evaluation.summary import Judged, Summary, reasoning, summarise
from lora_cot.formats import CotFormat
from lora_cot.recipe import Recipe
from lora_cot.recipe.load import change_search
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
    candidates: int
    scorer: str
    summary: Summary
    format_validity: Share
    left_out: int
    """Problems of questions that cannot be asked, such as an image that is not there; they count nowhere."""
    totals: dict[str, float]
    """Costs of all questions by the names of `Completion.totals`; `generated_tokens` are those of lost candidates too."""
    stopped: dict[str, int]
    """Questions whose search ended early, by the reason without its particulars."""

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

    @property
    def per_question(self) -> dict[str, float]:
        """Costs of one question."""
        names = {
            "tokens": "generated_tokens",
            "kept_tokens": "kept_tokens",
            "judge_calls": "judge_prompts",
            "seconds": "seconds",
        }
        count = self.format_validity.total
        return {f"{name}_per_question": self.totals[total] / count for name, total in names.items()}

    def lines(self) -> list[tuple[str, Any]]:
        """For people: accuracy, and beside it tokens and seconds."""
        spent = self.totals
        tokens, kept, prompts, seconds = self.per_question.values()
        judged = f"{spent['flips']} flips, {spent['skipped_judgements']} not needed, {spent['judge_failures']} failed"
        rows: list[tuple[str, Any]] = [
            *self.summary.lines(),
            ("valid format", self.format_validity),
            ("left out", self.left_out),
            ("tokens a question", f"{tokens:.1f} ({kept:.1f} kept), {spent['generated_tokens']} in all"),
            ("judge prompts a question", f"{prompts:.1f} ({judged} in all)"),
            ("seconds a question", f"{seconds:.3f}, {spent['seconds']:.1f} in all"),
        ]
        return rows + [(f"stopped: {reason}", count) for reason, count in self.stopped.items()]

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        plain = {key: value for key, value in vars(self).items() if not isinstance(value, Share | Summary)}
        shares = {"accuracy": self.accuracy.to_json(), "format_validity": self.format_validity.to_json()}
        groups = {name: share.to_json() for name, share in self.groups.items()}
        told = {key: getattr(self.summary, key) for key in ("unanswered", "rouge_l", "failure_modes")}
        return {**plain, **self.per_question, **shares, **told, "groups": groups}


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
) -> EvalReport:
    """A model on a benchmark.

    Args:
        model: run, adapter, merged folder or hub id.
        benchmark: name of a benchmark; the recipe's if not given, its split and limit too.
        split: one of its splits; its first if not given.
        limit: first so many questions.
        search: values by key of the recipe's search section, inner ones dotted: `{"keep": 2, "swires.mean": -0.1}`.
        output: JSONL with each question's text, answer and verdict.
        quantization: how the base is loaded.
        data: where the benchmark's files are; where the recipe's data are, if not given and they are the same questions.
        server: what runs the model, if not this process; of `model` its recipe is read then, and no weights.

    Raises:
        RecipeError: the search has no such key or value.
        RunError, DataError: no such benchmark, split or model, or none of its questions can be asked; see `open_remote`.
    """
    if benchmark is not None:
        check_split(benchmark, split)  # before a model is loaded for nothing
    opened = _open(model, quantization, server)
    recipe, told = opened.recipe, opened.recipe.evaluation
    if benchmark is None or benchmark == told.benchmark:
        benchmark, split, limit, data = told.benchmark, split or told.split, limit or told.limit, data or told.data
    chosen, split = find(benchmark), check_split(benchmark, split)
    config = change_search(recipe.search, search or {}, recipe.format)
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
        config.candidates,
        config.scorer,
        summarise(chosen, judged),
        Share(sum(c.parsed.outcome == "complete" for c in completions), len(completions)),
        left_out,
        _totals(completions, seconds),
        dict(Counter(re.split(":| after ", c.stopped)[0] for c in completions if c.stopped != "complete")),
    )


def _totals(completions: Sequence[Completion], seconds: float) -> dict[str, float]:
    """Costs of all questions together; the time is that of the whole evaluation, the making of its engine included."""
    return {name: sum(c.totals[name] for c in completions) for name in completions[0].totals} | {"seconds": seconds}


def _open(model: str, quantization: Quantization, server: Server | None) -> Opened | OpenedRemote:
    opened = open_remote(model, server) if server else open_model(model, quantization)
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
                "totals": completion.totals,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
