"""`evaluate`: a model and a strategy on a benchmark, batch by batch."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lora_cot.checkpoints.fingerprints import data_print
from lora_cot.checkpoints.opening import Quantization
from lora_cot.data.demonstrations import Preface, load_demonstrations, preface
from lora_cot.data.kept import KeptRows
from lora_cot.data.rows import shortened
from lora_cot.engines.opening import AnyOpened, OpenedRemote, Server, open_any
from lora_cot.engines.teacher import Teacher
from lora_cot.errors import DataError, EngineError, Problem, StoppedError
from lora_cot.evaluation.answered import Answered, answered, judged, known, row_of, weights_date, write_verdicts
from lora_cot.evaluation.asking import answers
from lora_cot.evaluation.benchmarks import Benchmark, check_split, find
from lora_cot.evaluation.comparing import check_page, comparison, write_page
from lora_cot.evaluation.entries import Entry
from lora_cot.evaluation.judging import Grading, check_judge, grade
from lora_cot.evaluation.questions import Wanted
from lora_cot.evaluation.report import EvalReport, report_of
from lora_cot.evaluation.summary import Judged
from lora_cot.recipe import Recipe
from lora_cot.recipe.load import change_search
from lora_cot.recipe.schema import SearchSection
from lora_cot.types import Sample


def evaluate(
    model: str | AnyOpened,
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
    judge: Teacher | None = None,
    page: Path | None = None,
) -> EvalReport:
    """A model on a benchmark.

    Args:
        model: run, adapter, merged folder or hub id; or what `open_model` or `open_remote` gave.
        benchmark: name of a benchmark; the recipe's if not given, its split and limit too.
        split: one of its splits; its first if not given.
        limit: first so many questions.
        search: values by key of the recipe's search section, inner ones dotted: `{"keep": 2, "swires.mean": -0.1}`.
        output: JSONL with each question's text, answer and verdict, written as they come. What is there of the same
            model, questions and search is not asked again.
        quantization: how the base of a model that is named is loaded; for `server` and `format_name` too, see `open_any`.
        data: where the benchmark's files are; where the recipe's data are, if not given and they are the same questions.
        server: what runs it, if not this process.
        format_name: a built-in format to ask in; the recipe's if not given.
        demonstrations: a file of worked examples that every prompt shows before its question.
        judge: a served model that grades the answers, where the benchmark has them graded; its rule alone, if not given.
        page: an HTML file of the figures and plots; see `comparing.compare`.

    Raises:
        RecipeError: the search has no such key or value.
        RunError, DataError: no such benchmark, split, model or page; no question that can be asked; another output's keys.
        AccessError, EngineError: the server or the judge takes no request, or gives no answer any more; see `open_remote`.
        StoppedError: by Ctrl-C.
    """
    check_page(page)
    _check(benchmark, split, judge, output)  # before a model is loaded for nothing
    opened = open_any(model, quantization, server, format_name, search or {})
    recipe = opened.recipe
    if benchmark is None:
        _check(recipe.evaluation.benchmark, split, judge, output)
    benchmark, wanted = _wanted(recipe, benchmark, split, limit, data)
    config = change_search(recipe.search, search or {}, recipe.format)
    shown = _shown(demonstrations, recipe)
    samples, left_out = _questions(opened, benchmark, wanted, shown)
    setting = _setting(benchmark, wanted, opened, config, shown)
    with KeptRows(output, setting) if output else nullcontext() as kept:
        done = _answered(opened, find(benchmark), samples, config, kept)
        grading, verdicts, rows = _graded(benchmark, recipe, judge, done, kept)
    if page:
        write_page(comparison([Entry(Path(opened.model).name, setting, rows, left_out)]), page)
    return report_of((benchmark, wanted.split, opened.model), config, verdicts, left_out, done, grading)


def _check(benchmark: str | None, split: str | None, judge: Teacher | None, output: Path | None) -> None:
    """See that the benchmark's answers can be judged, before there are any; nothing, where it is not known yet."""
    if benchmark is not None:
        check_split(benchmark, split)
        find(benchmark).check_installed()
        check_judge(benchmark, judge, output)


def _shown(demonstrations: Path | None, recipe: Recipe) -> Preface | None:
    if demonstrations is None:
        return None
    max_pixels = recipe.data.max_pixels
    return preface(load_demonstrations(demonstrations, max_pixels), recipe.format.build(), max_pixels)


def _wanted(
    recipe: Recipe, benchmark: str | None, split: str | None = None, limit: int | None = None, data: str | None = None
) -> tuple[str, Wanted]:
    """The benchmark that is named, or the recipe's own, with what of it is wanted."""
    told = recipe.evaluation
    if benchmark is None or benchmark == told.benchmark:
        benchmark, split, limit, data = told.benchmark, split or told.split, limit or told.limit, data or told.data
    keys = _keys(recipe, find(benchmark).source)
    return benchmark, Wanted(check_split(benchmark, split), limit, data, keys=keys)


def _graded(
    benchmark: str, recipe: Recipe, judge: Teacher | None, done: Sequence[Answered], kept: KeptRows | None
) -> tuple[Grading, list[Judged], list[dict[str, Any]]]:
    """All answers with the verdicts on them, in the file too."""
    texts = [(one.sample, one.parsed.answer) for one in done]
    grading, chosen = grade(benchmark, judge, texts, kept.output if kept else None), find(benchmark)
    verdicts = [judged(chosen, recipe.format.build(), one, grading.verdicts.get(one.sample.id)) for one in done]
    rows = [row_of(*pair, chosen, grading) for pair in zip(done, verdicts, strict=True)]
    if kept:
        write_verdicts(kept, rows)
    return grading, verdicts, rows


def _setting(
    benchmark: str, wanted: Wanted, opened: AnyOpened, config: SearchSection, shown: Preface | None
) -> dict[str, Any]:
    """What must be the same for answers that one report counts together."""
    quantization, engine = "auto", "this process"
    if isinstance(opened, OpenedRemote):
        served, others = opened.engine.served, opened.engine.others
        names = [served.name, *(f"{name}={one.name}" for name, one in others.items())]
        engine = f"{', '.join(names)} at {opened.engine.link.server.url}"
    else:
        quantization = opened.quantization
    asked = {"benchmark": benchmark, "split": wanted.split, "data": wanted.data, "quantization": quantization}
    search = {f"search.{key}": value for key, value in config.model_dump(mode="json").items()}
    told = {"model": opened.model, "weights": weights_date(opened.model), "engine": engine}
    told_format = {"format": opened.recipe.format.model_dump(mode="json")}
    examples = {"demonstrations": data_print([shown.before(Sample("", ()))])} if shown else {}
    return asked | told | told_format | search | examples


def _answered(
    opened: AnyOpened, chosen: Benchmark, samples: Sequence[Sample], config: SearchSection, kept: KeptRows | None
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
                kept.append(kept.output, row_of(one, judged(chosen, cot_format, one), chosen, Grading()))
    except (KeyboardInterrupt, EngineError) as error:
        kept_there = f"are in {kept.output}: the same command goes on from there" if kept else "are lost: name an --output"
        remedy = f"{len(found)} of {len(samples)} answers {kept_there}"
        if isinstance(error, KeyboardInterrupt):
            raise StoppedError(Problem("", "stopped by SIGINT", remedy), 130) from None
        raise type(error)([*error.problems, Problem("", remedy)]) from None
    return [found[sample.id] for sample in samples]


def _questions(opened: AnyOpened, name: str, wanted: Wanted, shown: Preface | None) -> tuple[list[Sample], int]:
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
    benchmark, wanted = _wanted(recipe, None)
    find(benchmark).check_installed()
    if not find(benchmark).load(wanted).samples:
        raise DataError(Problem("evaluation", f"none of the questions of {benchmark} can be asked", "check its files"))


def _keys(recipe: Recipe, source: str | None) -> dict[str, Any]:
    """Keys of the recipe's own section of that source: where the files are, what a question and its rationale hold."""
    sections = (section for section in (*recipe.data.eval, *recipe.data.train) if section.source == source)
    return next((section.model_dump() for section in sections), {})
