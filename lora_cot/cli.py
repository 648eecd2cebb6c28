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

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune, merge, search and evaluate vision-language models that reason in named stages.",
)

Model = Annotated[str, typer.Argument(help="A run, an adapter, a merged folder, mini/NAME or a hub id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
Data = Annotated[str | None, typer.Option(help="Where the benchmark's files are; shapes has none.")]
Split = Annotated[str | None, typer.Option(help="The benchmark's first split if not given.")]
Strategy = Annotated[str | None, typer.Option(help="greedy, sample or stage_beam; the recipe's if not given.")]
Candidates = Annotated[int | None, typer.Option(min=1, help="Texts drawn for each stage.")]
Scorer = Annotated[str | None, typer.Option(help="logprob or self_judge.")]
JudgeAdapter = Annotated[str | None, typer.Option(help="on: the fine-tuned model judges; off: its base.")]
Quantize = Annotated[str, typer.Option("--quantization", help="auto (as trained or saved), nf4 or none.")]


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
    from lora_cot.training.run import train as run

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
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its full-precision base and prove that the result is the same model."""
    from dataclasses import asdict

    from lora_cot.merging.merge import lines
    from lora_cot.merging.merge import merge as run_merge

    reports = run_merge(run, output)
    values = asdict(reports[0]) if len(reports) == 1 else {"passes": [asdict(report) for report in reports]}
    _print(values, as_json, [row for report in reports for row in lines(report)])


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
    search = _search(strategy, candidates, scorer, judge_adapter)
    how = _quantization(quantization)
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
    _print(report.to_json(), as_json, rows)


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
    _print(report.to_json(), as_json, [("scored", report.scored), *report.summary.lines(), *counts])


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
    search = _search(strategy, candidates, scorer, judge_adapter)
    how = _quantization(quantization)
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
    what: Any = path
    if path.suffix in (".yaml", ".yml"):
        from lora_cot.recipe import load_recipe

        what = load_recipe(path)
    elif samples is not None:
        raise RunError(Problem("--show", "a file has no processor to show samples with", "name a recipe"))
    elif field is not None or source_of(path) is None:
        counts = count_outcomes(path, FORMATS[cot_format], field or PREDICTION)
        rows = [(name, counts[name]) for name in ("rows", "complete", "partial", "none")]
        rows += [(f"  {fault}", number) for fault, number in counts["faults"].items()]
        _print(counts, as_json, rows)
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


def _show(recipe: Any, count: int, page: Path, as_json: bool) -> None:
    """Print samples as the model sees them, and write them to a page."""
    from lora_cot.validation.show import lines, show_samples, write_page

    shown = show_samples(recipe, count)
    write_page(shown, recipe, page)
    values = {"recipe": recipe.name, "html": str(page), "samples": [sample.to_json() for sample in shown]}
    print(json.dumps(values, ensure_ascii=False) if as_json else "\n".join(lines(shown)))
    print(f"page: {page}", file=sys.stderr)


def _search(strategy: str | None, candidates: int | None, scorer: str | None, judge_adapter: str | None) -> dict[str, Any]:
    """Search keys given on the command line.

    Raises:
        RunError: a name that does not exist.
    """
    from typing import get_args

    from lora_cot.recipe.schema import SearchSection

    given = {"strategy": strategy, "candidates": candidates, "scorer": scorer}
    for key in ("strategy", "scorer"):
        allowed = get_args(SearchSection.model_fields[key].annotation)
        if given[key] is not None and given[key] not in allowed:
            raise RunError(Problem(f"--{key}", f"no {key} '{given[key]}'", nearest(str(given[key]), allowed)))
    if judge_adapter not in (None, "on", "off"):
        raise RunError(Problem("--judge-adapter", f"'{judge_adapter}' is neither on nor off"))
    keys = {key: value for key, value in given.items() if value is not None}
    return keys | ({} if judge_adapter is None else {"judge_adapter": judge_adapter == "on"})


def _quantization(name: str) -> Any:
    allowed = ("auto", "nf4", "none")
    if name not in allowed:
        raise RunError(Problem("--quantization", f"no quantisation '{name}'", nearest(name, allowed)))
    return name


def _print(values: dict[str, Any], as_json: bool, rows: list[tuple[str, Any]]) -> None:
    if as_json:
        print(json.dumps(values, ensure_ascii=False))
        return
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name.ljust(width)}  {value}" for name, value in rows))


if __name__ == "__main__":
    main()
