"""The command line: parse, call, report. Everything heavy is imported inside the verb that needs it.

Exit codes: 0 done, 2 the input is wrong, 1 it failed.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_cot.errors import DataError, LoraCotError, Problem, RunError, nearest
from lora_cot.options import (
    AsJson,
    Candidates,
    Data,
    JudgeAdapter,
    Model,
    Onto,
    Quantize,
    Scorer,
    Split,
    Strategy,
    Verify,
    print_rows,
    quantization_name,
    recipe_or_path,
    search_keys,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune, merge, search and evaluate vision-language models that reason in named stages.",
)


def main() -> None:
    """Entry point: errors made for people are shown without a traceback."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft|accelerate")
    try:
        app()
    except LoraCotError as error:
        print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        sys.exit(error.exit_code)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe's YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Keys to change.")] = None,
) -> None:
    """Train a recipe into runs/NAME. To use several GPUs: accelerate launch train.py RECIPE."""
    from lora_cot.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from lora_cot.evaluation.after import train as run

    folder = run(loaded)
    print(f"adapter  {folder / 'adapter'}\nreport   {folder / 'report.html'}")


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe's YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Keys to change.")] = None,
    vram_gb: Annotated[
        float | None, typer.Option(min=0.1, help="Memory of the GPU it is to fit; without, this machine's.")
    ] = None,
    tokens_per_second: Annotated[float | None, typer.Option(min=0.001, help="Rate; an earlier run's if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell before training whether a recipe fits, what would make it fit, and how long it takes. Nothing is loaded."""
    from lora_cot.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from lora_cot.planning.plan import lines
    from lora_cot.planning.plan import plan as run

    found = run(loaded, vram_gb, tokens_per_second)
    print(json.dumps(found.to_json(), ensure_ascii=False) if as_json else "\n".join(lines(found)))


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="A run, or an adapter folder.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the merged model; RUN/merged if not given.")] = None,
    onto: Onto = "auto",
    verify: Verify = True,
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base and prove that the result is the same model. A merge that was stopped goes on."""
    from dataclasses import asdict

    from lora_cot.merging.merge import lines
    from lora_cot.merging.merge import merge as run_merge

    reports = run_merge(run, output, onto, verify)  # type: ignore[arg-type]
    values = asdict(reports[0]) if len(reports) == 1 else {"passes": [asdict(report) for report in reports]}
    print_rows(values, as_json, [row for report in reports for row in lines(report)])


@app.command("eval")
def evaluate(
    model: Model,
    benchmark: Annotated[str | None, typer.Option(help="Name of a benchmark; the recipe's if not given.")] = None,
    data: Data = None,
    split: Split = None,
    strategy: Strategy = None,
    candidates: Candidates = None,
    scorer: Scorer = None,
    judge_adapter: JudgeAdapter = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSONL of every question with its text and verdict.")] = None,
    quantization: Quantize = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure a model and a strategy on a benchmark."""
    search = search_keys(strategy, candidates, scorer, judge_adapter)
    how = quantization_name(quantization)
    from lora_cot.evaluation.run import evaluate as run

    report = run(model, benchmark, split, limit, search, output, how, data)
    rows = [
        *report.summary.lines(),
        ("valid format", report.format_validity),
        ("left out", report.left_out),
        ("tokens a question", f"{report.tokens_per_question:.1f} ({report.kept_tokens_per_question:.1f} kept)"),
        ("judge prompts a question", f"{report.judge_calls_per_question:.1f}"),
        ("seconds a question", f"{report.seconds_per_question:.3f}"),
    ]
    print_rows(report.to_json(), as_json, rows)


@app.command()
def score(
    benchmark: Annotated[str, typer.Option(help="Name of a benchmark.")],
    predictions: Annotated[Path, typer.Option(help="JSONL of id and output, or ScienceQA's or A-OKVQA's official form.")],
    data: Data = None,
    split: Split = None,
    rationale: Annotated[str | None, typer.Option(help="ScienceQA's gold rationale: LE (with the lecture) or E.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge answers that were made elsewhere. Questions and predictions that have no partner are listed, not judged."""
    from lora_cot.evaluation.predictions import score as run

    if rationale not in (None, "LE", "E"):
        raise RunError(Problem("--rationale", f"no rationale '{rationale}'", nearest(rationale, ("LE", "E"))))
    report = run(benchmark, predictions, data, split, rationale)
    for gap, ids in report.gaps.items():
        if ids:
            print(f"{gap.replace('_', ' ')}: {len(ids)}", *ids[:20], *["…"] * (len(ids) > 20), sep="\n  ", file=sys.stderr)
    counts = [(gap.replace("_", " "), len(ids)) for gap, ids in report.gaps.items()]
    print_rows(report.to_json(), as_json, [("scored", report.scored), *report.summary.lines(), *counts])


@app.command()
def ask(
    model: Model,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    strategy: Strategy = None,
    candidates: Candidates = None,
    scorer: Scorer = None,
    judge_adapter: JudgeAdapter = None,
    trace: Annotated[Path | None, typer.Option(help="HTML file of all candidates and verdicts.")] = None,
    quantization: Quantize = "auto",
) -> None:
    """Ask one question about one image; stages are printed as they are decided."""
    search = search_keys(strategy, candidates, scorer, judge_adapter)
    how = quantization_name(quantization)
    from lora_cot.checkpoints.opening import open_model
    from lora_cot.evaluation.ask import ask as run

    if not image.is_file():  # before a model is loaded for nothing
        raise DataError(Problem(str(image), "no such image file"))
    opened = open_model(model, how)
    print(opened.said, file=sys.stderr)

    def show(_number: int, stage: Any) -> None:
        print(next(c.text for c in stage.candidates if c.chosen).strip(), flush=True)

    completion = run(opened, image, question, search, show, trace)
    if completion.stopped != "complete":
        print(f"stopped early: {completion.stopped}", file=sys.stderr)
    print(f"\nanswer: {completion.parsed.answer or 'none'}")
    if trace is not None:
        print(f"trace: {trace}", file=sys.stderr)


@app.command()
def validate(
    path: Annotated[Path, typer.Argument(metavar="RECIPE_OR_FILE", help="A recipe, a file of data, or one of predictions.")],
    cot_format: Annotated[str, typer.Option("--format", help="Name of a format; a recipe has its own.")] = "four_stage",
    field: Annotated[
        str | None, typer.Option(help="Key of the text in a file of predictions; 'prediction' if not given.")
    ] = None,
    bad: Annotated[Path | None, typer.Option(help="JSONL of every finding; NAME.bad.jsonl here if not given.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; as many as cores, 4 at most, if not given.")] = None,
    samples: Annotated[
        int | None, typer.Option("--show", min=1, help="Show so many samples of a recipe as the model sees them instead.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Page that --show writes; NAME.samples.html here if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check every row as training would meet it: exit 1 where training would stop.

    Of a recipe all sources are checked, with the processor of its base. A file is checked as data if its rows have
    conversations, messages, or a question with stages or an answer; a file whose rows have a 'prediction', or any file
    with --field, is one of predictions: it is counted how many of them are in a format.
    """
    from lora_cot.formats import FORMATS
    from lora_cot.validation.files import PREDICTION, count_outcomes, source_of

    if cot_format not in FORMATS:
        raise RunError(Problem("--format", f"no format '{cot_format}'", nearest(cot_format, FORMATS)))
    what = recipe_or_path(path)
    if what is path and samples is not None:
        raise RunError(Problem("--show", "a file has no processor to show samples with", "name a recipe"))
    if what is path and (field is not None or source_of(path) is None):
        counts = count_outcomes(path, FORMATS[cot_format], field or PREDICTION)
        rows = [(name, counts[name]) for name in ("rows", "complete", "partial", "none")]
        rows += [(f"  {fault}", number) for fault, number in counts["faults"].items()]
        print_rows(counts, as_json, rows)
        return
    name = path.stem if what is path else what.name
    if samples is not None:
        _show(what, samples, html or Path(f"{name}.samples.html"), as_json)
        return
    from lora_cot.validation.run import validate as run

    report = run(what, cot_format, bad or Path(f"{name}.bad.jsonl"), workers)
    print(json.dumps(report.to_json(), ensure_ascii=False) if as_json else "\n".join(report.lines()))
    if not report.valid:
        raise typer.Exit(1)


@app.command()
def annotate(
    path: Annotated[Path, typer.Argument(metavar="RECIPE_OR_FILE", help="A recipe, a file of data, or ScienceQA's folder.")],
    teacher: Annotated[str, typer.Option(help="Address of any OpenAI-compatible server: http://HOST:PORT/v1.")],
    model: Annotated[str, typer.Option(help="Its name for the model that is asked.")],
    output: Annotated[Path, typer.Option(help="JSONL; it goes on where it was stopped. Beside it lie those kept aside.")],
    cot_format: Annotated[str | None, typer.Option("--format", help="A recipe's own, or four_stage, if not given.")] = None,
    part: Annotated[str, typer.Option(help="train or eval: the rows of a recipe that are meant.")] = "train",
    source: Annotated[int | None, typer.Option(min=0, help="Only this source of that part, counted from 0.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a folder or table without a recipe; train if not given.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Ask for rows that have reasoning of their own too.")] = False,
    faithful: Annotated[
        bool, typer.Option("--faithful", help="As LLaVA-CoT: it sees the gold answer, and judges its own.")
    ] = False,
    retry_aside: Annotated[bool, typer.Option("--retry-aside", help="Ask again for rows kept aside.")] = False,
    api_key_file: Annotated[Path | None, typer.Option(help="One line; the variable OPENAI_API_KEY if not given.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at once.")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows that lack reasoning.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer; the stages' budgets if not given.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of the teacher.")] = 0.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one answer.")] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Have a teacher write the reasoning that rows lack; only what agrees with their gold answers is used."""
    if part not in ("train", "eval"):
        raise RunError(Problem("--part", f"no part '{part}'", nearest(part, ("train", "eval"))))
    from lora_cot.annotation.asking import Teacher
    from lora_cot.annotation.rows import Selection
    from lora_cot.annotation.run import annotate as run
    from lora_cot.engines.chat import Patience, read_key

    asked = Teacher(teacher, model, read_key(api_key_file), max_tokens, temperature, Patience(timeout))
    what = recipe_or_path(path)
    chosen = Selection(part, source, split, everything, limit)
    report = run(what, asked, output, cot_format, chosen, faithful, retry_aside, concurrency)
    print_rows(report.to_json(), as_json, report.lines())
    if report.failed:
        raise typer.Exit(1)


def _show(recipe: Any, count: int, page: Path, as_json: bool) -> None:
    """Print samples as the model sees them, and write them to a page."""
    from lora_cot.validation.show import lines, show_samples, write_page

    shown = show_samples(recipe, count)
    write_page(shown, recipe, page)
    values = {"recipe": recipe.name, "html": str(page), "samples": [sample.to_json() for sample in shown]}
    print(json.dumps(values, ensure_ascii=False) if as_json else "\n".join(lines(shown)))
    print(f"page: {page}", file=sys.stderr)


if __name__ == "__main__":
    main()
