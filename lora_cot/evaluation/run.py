"""`evaluate`: a model and a strategy on a benchmark, batch by batch."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_cot.checkpoints.fingerprints import data_print
from lora_cot.checkpoints.opening import Opened, Quantization
from lora_cot.data.demonstrations import Preface, load_demonstrations, preface
from lora_cot.data.kept import KeptRows
from lora_cot.data.rows import shortened
from lora_cot.errors import DataError, EngineError, Problem, StoppedError
from lora_cot.evaluation.answered import Answered, answered, judged, known, row_of, weights_date
from lora_cot.evaluation.asking import answers
from lora_cot.evaluation.benchmarks import Benchmark, Wanted, check_split, find
from lora_cot.evaluation.metrics import Share
from lora_cot.evaluation.remote import OpenedRemote, Server, open_any
from lora_cot.evaluation.summary import Summary, summarise
from lora_cot.recipe import Recipe
from lora_cot.recipe.load import change_search
from lora_cot.recipe.schema import SearchSection
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
    seed: int
    summary: Summary
    format_validity: Share
    left_out: int
    """Problems of questions that cannot be asked, such as an image that is not there; they count nowhere."""
    totals: dict[str, float]
    """Costs of all questions by the names of `Completion.totals`; `generated_tokens` are those of lost candidates too, the
    seconds those of the searches."""
    stopped: dict[str, int]
    """Questions whose search ended early, by the reason without its particulars."""
    failed: int
    """Questions that the engine gave no text for; they count as wrong."""
    interleave: str | None = None
    """What chose the patches that were shown again; None: none were."""

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
    def flip_rate(self) -> float | None:
        """Share of the judged pairs, each asked in both orders, whose verdict changed with the order; None without any."""
        return 2 * self.totals["flips"] / self.totals["judge_prompts"] if self.totals["judge_prompts"] else None

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
        flips = f"{spent['flips']} flips" + (f" ({self.flip_rate:.1%} of pairs)" if self.flip_rate is not None else "")
        judged = f"{flips}, {spent['skipped_judgements']} not needed, {spent['judge_failures']} failed"
        rows: list[tuple[str, Any]] = [
            *self.summary.lines(),
            ("search", f"{self.strategy}, {self.candidates} candidates, scorer {self.scorer}, seed {self.seed}"),
            ("valid format", self.format_validity),
            ("left out", self.left_out),
            ("tokens a question", f"{tokens:.1f} ({kept:.1f} kept), {spent['generated_tokens']} in all"),
            ("judge prompts a question", f"{prompts:.1f} ({judged} in all)"),
            ("seconds a question", f"{seconds:.3f}, {spent['seconds']:.1f} in all"),
        ]
        rows += [("failed by the engine", self.failed)] if self.failed else []
        looks = spent["looks"] / self.format_validity.total
        rows += [("patches chosen by", f"{self.interleave}, {looks:.1f} looks a question")] if self.interleave else []
        return rows + [(f"stopped: {reason}", count) for reason, count in self.stopped.items()]

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        plain = {key: value for key, value in vars(self).items() if not isinstance(value, Share | Summary)}
        shares = {"accuracy": self.accuracy.to_json(), "format_validity": self.format_validity.to_json()}
        groups = {name: share.to_json() for name, share in self.groups.items()}
        told = {key: getattr(self.summary, key) for key in ("metric", "unanswered", "rouge_l", "failure_modes", "figures")}
        return {**plain, **self.per_question, "flip_rate": self.flip_rate, **shares, **told, "groups": groups}


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
    demonstrations: Path | None = None,
) -> EvalReport:
    """A model on a benchmark.

    Args:
        model: run, adapter, merged folder or hub id.
        benchmark: name of a benchmark; the recipe's if not given, its split and limit too.
        split: one of its splits; its first if not given.
        limit: first so many questions.
        search: values by key of the recipe's search section, inner ones dotted: `{"keep": 2, "swires.mean": -0.1}`.
        output: JSONL with each question's text, answer and verdict, written as they come. What is there of the same
            model, questions and search is not asked again.
        quantization: how the base is loaded.
        data: where the benchmark's files are; where the recipe's data are, if not given and they are the same questions.
        server: what runs the model, if not this process; of `model` its recipe is read then, and no weights.
        format_name: a built-in format to ask in; the recipe's if not given; see `in_format`.
        demonstrations: a file of worked examples that every prompt shows before its question.

    Raises:
        RecipeError: the search has no such key or value.
        RunError, DataError: no such benchmark, split or model, or none of its questions can be asked; the output has
            answers of another setting; see `open_remote`.
        EngineError: the server gives no answer any more.
        StoppedError: by Ctrl-C.
    """
    if benchmark is not None:
        check_split(benchmark, split)  # before a model is loaded for nothing
    examples = load_demonstrations(demonstrations) if demonstrations else []
    opened = open_any(model, quantization, server, format_name)
    recipe, told = opened.recipe, opened.recipe.evaluation
    if benchmark is None or benchmark == told.benchmark:
        benchmark, split, limit, data = told.benchmark, split or told.split, limit or told.limit, data or told.data
    chosen, split = find(benchmark), check_split(benchmark, split)
    config = change_search(recipe.search, search or {}, recipe.format)
    shown = preface(examples, recipe.format.build(), recipe.data.max_pixels) if examples else None
    samples, left_out = _questions(opened, benchmark, Wanted(split, limit, data, keys=_keys(recipe, chosen.source)), shown)
    setting = _setting(model, server, config)
    setting |= {"benchmark": benchmark, "split": split, "data": data, "quantization": quantization}
    setting |= {"format": recipe.format.model_dump(mode="json")}
    setting |= {"demonstrations": data_print([shown.before(Sample("", ()))])} if shown else {}
    with KeptRows(output, setting) if output else nullcontext() as kept:
        done = _answered(opened, chosen, samples, config, kept)
    cot_format = recipe.format.build()
    summary = summarise(chosen, [judged(chosen, cot_format, one) for one in done])
    return _report((benchmark, split, model), config, summary, left_out, done)


def _report(
    asked: tuple[str, str, str], config: SearchSection, summary: Summary, left_out: int, done: Sequence[Answered]
) -> EvalReport:
    return EvalReport(
        *asked,
        config.strategy,
        config.candidates,
        config.scorer,
        config.seed,
        summary,
        Share(sum(one.parsed.outcome == "complete" for one in done), len(done)),
        left_out,
        {name: sum(one.totals.get(name, 0) for one in done) for name in done[-1].totals},
        dict(Counter(re.split(":| after ", one.stopped)[0] for one in done if one.stopped != "complete")),
        sum(one.failed for one in done),
        config.interleave.selector if config.interleave else None,
    )


def _setting(model: str, server: Server | None, config: SearchSection) -> dict[str, Any]:
    """What must be the same for answers that one report counts together."""
    engine = "this process" if server is None else f"server, {server.model or 'its only model'}"
    search = {f"search.{key}": value for key, value in config.model_dump(mode="json").items()}
    return {"model": model, "weights": weights_date(model), "engine": engine, **search}


def _answered(
    opened: Opened | OpenedRemote, chosen: Benchmark, samples: Sequence[Sample], config: SearchSection, kept: KeptRows | None
) -> list[Answered]:
    """All questions with their answers, those that are kept already among them."""
    cot_format = opened.recipe.format.build().spelled(opened.family.tag_style)
    found = known(kept, samples, cot_format) if kept else {}
    if found:
        print(f"{len(found)} of {len(samples)} questions were answered before", file=sys.stderr)
    todo = [sample for sample in samples if sample.id not in found]
    try:
        for sample, completion in answers(opened, cot_format, todo, config):
            one = found[sample.id] = answered(sample, completion)
            if kept:
                kept.append(kept.output, row_of(one, judged(chosen, cot_format, one)))
    except (KeyboardInterrupt, EngineError) as error:
        kept_there = f"are in {kept.output}: the same command goes on from there" if kept else "are lost: name an --output"
        remedy = f"{len(found)} of {len(samples)} answers {kept_there}"
        if isinstance(error, KeyboardInterrupt):
            raise StoppedError(Problem("", "stopped by SIGINT", remedy), 130) from None
        raise type(error)([*error.problems, Problem("", remedy)]) from None
    return [found[sample.id] for sample in samples]


def _questions(opened: Opened | OpenedRemote, name: str, wanted: Wanted, shown: Preface | None) -> tuple[list[Sample], int]:
    """What can be asked, what is shown before it included, and how many problems the rest has, which are told."""
    found, most_images = find(name).load(wanted), opened.family.most_images
    limit = math.inf if most_images is None else most_images
    wished = [shown.before(sample) if shown else sample for sample in found.samples]
    samples = [sample for sample in wished if len(sample.images) <= limit]
    what = f"more images than the {most_images} that this model sees"
    problems = [*found.problems, *(Problem(s.id, what) for s in wished if len(s.images) > limit)]
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
