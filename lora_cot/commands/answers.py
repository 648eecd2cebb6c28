"""Verbs that have models answer, or judge answers: eval, compare, score, ask."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_cot.commands.options import (
    CandidatesOption,
    DataOption,
    DemonstrationsOption,
    EngineKeyFileOption,
    EngineModelOption,
    EngineOption,
    FormatOption,
    InterleaveOption,
    JsonOption,
    JudgeAdapterOption,
    JudgeKeyFileOption,
    JudgeModelOption,
    JudgeOption,
    ModelArgument,
    QuantizationOption,
    ScorerOption,
    SettingsOption,
    SplitOption,
    StrategyOption,
    judge_of,
    print_found,
    search_keys,
    server_of,
)
from lora_cot.errors import DataError, Problem, RunError, nearest

if TYPE_CHECKING:
    from lora_cot.evaluation.judging import Grading


def evaluate(
    model: ModelArgument,
    benchmark: Annotated[str | None, typer.Option(help="Name of a benchmark; the recipe's if not given.")] = None,
    data: DataOption = None,
    split: SplitOption = None,
    format_name: FormatOption = None,
    demonstrations: DemonstrationsOption = None,
    strategy: StrategyOption = None,
    candidates: CandidatesOption = None,
    scorer: ScorerOption = None,
    judge_adapter: JudgeAdapterOption = None,
    interleave: InterleaveOption = None,
    settings: SettingsOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSONL of every question with its text and verdict.")] = None,
    quantization: QuantizationOption = "auto",
    engine: EngineOption = None,
    engine_model: EngineModelOption = None,
    engine_key_file: EngineKeyFileOption = None,
    judge: JudgeOption = None,
    judge_model: JudgeModelOption = None,
    judge_key_file: JudgeKeyFileOption = None,
    page: Annotated[Path | None, typer.Option("--report", help="HTML page of the figures, with plots.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model and a strategy on a benchmark."""
    search = search_keys(strategy, candidates, scorer, judge_adapter, settings, interleave)
    server = server_of(engine, engine_model, engine_key_file)
    from lora_cot.engines.opening import check_looks
    from lora_cot.evaluation.comparing import check_page
    from lora_cot.evaluation.run import evaluate as run

    check_page(page)
    check_looks(model, search, server)
    report = run(
        model,
        benchmark,
        split,
        limit=limit,
        search=search,
        output=output,
        quantization=quantization,  # type: ignore[arg-type]
        data=data,
        server=server,
        format_name=format_name,
        demonstrations=demonstrations,
        judge=judge_of(judge, judge_model, judge_key_file),
        page=page,
    )
    print_found(report.to_json(), as_json, report.lines())
    _warn_of_judging(report.scorer, report.totals["judge_failures"])
    _tell_of_grades(report.grading)
    if report.failed:
        print(f"error: the engine gave no text for {report.failed} questions", file=sys.stderr)
    if report.failed or report.grading.failed:
        raise typer.Exit(1)


def compare(
    places: Annotated[list[str], typer.Argument(metavar="A B …", help="Files of eval --output, or measured runs.")],
    output: Annotated[Path | None, typer.Option(help="HTML page of tables and plots.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Hold evaluations of the same questions against the first of them, question by question."""
    from lora_cot.evaluation.comparing import compare as run

    if len(places) < 2:
        raise RunError(Problem("A B", "one evaluation is nothing to compare", "name two or more"))
    report = run(*places, output=output)
    print_found(report.to_json(), as_json, report.lines())


def score(
    benchmark: Annotated[str, typer.Option(help="Name of a benchmark.")],
    predictions: Annotated[Path, typer.Option(help="JSONL of id and output, or ScienceQA's, A-OKVQA's or M3CoT's own form.")],
    data: DataOption = None,
    split: SplitOption = None,
    rationale: Annotated[str | None, typer.Option(help="ScienceQA's gold rationale: LE (with the lecture) or E.")] = None,
    judge: JudgeOption = None,
    judge_model: JudgeModelOption = None,
    judge_key_file: JudgeKeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge answers that were made elsewhere. Questions and predictions that have no partner are listed, not judged."""
    from lora_cot.evaluation.predictions import score as run

    if rationale not in (None, "LE", "E"):
        raise RunError(Problem("--rationale", f"no rationale '{rationale}'", nearest(rationale, ("LE", "E"))))
    grader = judge_of(judge, judge_model, judge_key_file)
    report = run(benchmark, predictions, data, split, rationale, grader)
    for gap, ids in report.gaps.items():
        if ids:
            print(f"{gap.replace('_', ' ')}: {len(ids)}", *ids[:20], *["…"] * (len(ids) > 20), sep="\n  ", file=sys.stderr)
    print_found(report.to_json(), as_json, report.lines())
    _tell_of_grades(report.grading)
    if report.grading.failed:
        raise typer.Exit(1)


def ask(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    format_name: FormatOption = None,
    demonstrations: DemonstrationsOption = None,
    strategy: StrategyOption = None,
    candidates: CandidatesOption = None,
    scorer: ScorerOption = None,
    judge_adapter: JudgeAdapterOption = None,
    interleave: InterleaveOption = None,
    settings: SettingsOption = None,
    trace: Annotated[Path | None, typer.Option(help="File of all candidates and verdicts: .html or .json.")] = None,
    quantization: QuantizationOption = "auto",
    engine: EngineOption = None,
    engine_model: EngineModelOption = None,
    engine_key_file: EngineKeyFileOption = None,
) -> None:
    """Ask one question about one image; stages are printed as they are decided."""
    search = search_keys(strategy, candidates, scorer, judge_adapter, settings, interleave)
    server = server_of(engine, engine_model, engine_key_file)
    from lora_cot.engines.opening import check_looks, open_any
    from lora_cot.evaluation.ask import ask as run
    from lora_cot.evaluation.ask import check_trace
    from lora_cot.evaluation.asking import is_failed

    if not image.is_file():  # before a model is loaded for nothing
        raise DataError(Problem(str(image), "no such image file"))
    check_trace(trace)
    check_looks(model, search, server)
    opened = open_any(model, quantization, server, format_name, search)  # type: ignore[arg-type]

    def show(_number: int, stage: Any) -> None:
        print(next(c.text for c in stage.candidates if c.chosen).strip(), flush=True)

    completion = run(opened, image, question, search, show, trace, demonstrations)
    if completion.stopped != "complete":
        print(f"stopped early: {completion.stopped}", file=sys.stderr)
    _warn_of_judging(search.get("scorer", opened.recipe.search.scorer), completion.judge_failures)
    print(f"\nanswer: {completion.parsed.answer or 'none'}")
    if trace is not None:
        print(f"trace: {trace}", file=sys.stderr)
    if is_failed(completion):
        raise typer.Exit(1)


def _warn_of_judging(scorer: str, failures: float) -> None:
    if failures:
        print(f"the scorer {scorer} gave no verdict {failures:g} times: likelihood decided instead", file=sys.stderr)


def _tell_of_grades(grading: Grading) -> None:
    """Name the answers that got none."""
    if failed := [f"{name}: {why}" for name, why in grading.failed.items()]:
        shown = [*failed[:20], *["…"] * (len(failed) > 20)]
        print(f"error: {len(failed)} answers got no grade, and count as wrong:", *shown, sep="\n  ", file=sys.stderr)
