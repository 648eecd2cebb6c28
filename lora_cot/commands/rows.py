"""Verbs on rows of data: validate, annotate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_cot.commands.options import (
    JsonOption,
    print_found,
    recipe_or_path,
)
from lora_cot.errors import Problem, RunError

if TYPE_CHECKING:
    from lora_cot.formats import CotFormat


def validate(
    path: Annotated[Path, typer.Argument(metavar="RECIPE_OR_FILE", help="A recipe, a file of data, or one of predictions.")],
    format_name: Annotated[str, typer.Option("--format", help="Name of a format; a recipe has its own.")] = "four_stage",
    field: Annotated[
        str | None, typer.Option(help="Key of the text in a file of predictions; 'prediction' if not given.")
    ] = None,
    bad: Annotated[Path | None, typer.Option(help="JSONL of every finding; NAME.bad.jsonl here if not given.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; as many as cores, 4 at most, if not given.")] = None,
    samples: Annotated[
        int | None, typer.Option("--show", min=1, help="Show so many samples of a recipe as the model sees them instead.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Page that --show writes; NAME.samples.html here if not given.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every row as training would meet it: exit 1 where training would stop.

    Of a recipe all sources are checked, with the processor of its base. A file is checked as data if its rows have
    conversations, messages, or a question with stages or an answer; a file whose rows have a 'prediction', or any file
    with --field, is one of predictions: it is counted how many of them are in a format. A YAML or JSON file with
    'demonstrations' is checked for its images, boxes and answers.
    """
    from lora_cot.data.demonstrations import is_demonstrations
    from lora_cot.formats import format_called
    from lora_cot.validation.files import source_of

    cot_format = format_called(format_name)
    if is_demonstrations(path):
        _count_demonstrations(path, as_json)
        return
    what = recipe_or_path(path)
    if what is path and samples is not None:
        raise RunError(Problem("--show", "a file has no processor to show samples with", "name a recipe"))
    if what is path and (field is not None or source_of(path) is None):
        _count_predictions(path, cot_format, field, as_json)
        return
    name = path.stem if what is path else what.name
    if samples is not None:
        _show(what, samples, html or Path(f"{name}.samples.html"), as_json)
        return
    from lora_cot.validation.run import validate as run

    report = run(what, format_name, bad or Path(f"{name}.bad.jsonl"), workers)
    print_found(report.to_json(), as_json, report.lines())
    if not report.valid:
        raise typer.Exit(1)


def annotate(
    path: Annotated[Path, typer.Argument(metavar="RECIPE_OR_FILE", help="A recipe, a file of data, or ScienceQA's folder.")],
    teacher: Annotated[str, typer.Option(help="Address of any OpenAI-compatible server: http://HOST:PORT/v1.")],
    model: Annotated[str, typer.Option(help="Its name for the model that is asked.")],
    output: Annotated[Path, typer.Option(help="JSONL; it goes on where it was stopped. Beside it lie those kept aside.")],
    format_name: Annotated[str | None, typer.Option("--format", help="A recipe's own, or four_stage, if not given.")] = None,
    part: Annotated[str, typer.Option(help="train or eval: the rows of a recipe that are meant.")] = "train",
    source: Annotated[int | None, typer.Option(min=0, help="Only this source of that part, counted from 0.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a folder or table without a recipe; train if not given.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Ask for rows that have reasoning of their own too.")] = False,
    faithful: Annotated[
        bool, typer.Option("--faithful", help="As LLaVA-CoT: it sees the gold answer, and judges its own.")
    ] = False,
    retry_aside: Annotated[bool, typer.Option("--retry-aside", help="Ask again for rows kept aside.")] = False,
    teacher_key_file: Annotated[Path | None, typer.Option(help="Its key, one line; OPENAI_API_KEY if not given.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at once.")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows that lack reasoning.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer; the stages' budgets if not given.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of the teacher.")] = 0.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one answer.")] = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Have a teacher write the reasoning that rows lack; only what agrees with their gold answers is used."""
    from lora_cot.annotation.rows import Selection
    from lora_cot.annotation.run import annotate as run
    from lora_cot.engines.chat import Patience, read_key
    from lora_cot.engines.teacher import Teacher

    asked = Teacher(teacher, model, read_key(teacher_key_file), max_tokens, temperature, Patience(timeout))
    what = recipe_or_path(path)
    chosen = Selection(part, source, split, everything, limit)
    report = run(what, asked, output, format_name, chosen, faithful, retry_aside, concurrency)
    print_found(report.to_json(), as_json, report.lines())
    if report.failed:
        raise typer.Exit(1)


def _count_demonstrations(path: Path, as_json: bool) -> None:
    """Print what is in a file of them, once all could be read."""
    from lora_cot.data.demonstrations import Region, load_demonstrations

    shown = load_demonstrations(path)
    steps = [step for one in shown for step in one.steps]
    regions = sum(isinstance(step, Region) for step in steps)
    values = {"demonstrations": len(shown), "texts": len(steps) - regions, "regions": regions}
    print_found(values, as_json, list(values.items()))


def _count_predictions(path: Path, cot_format: CotFormat, field: str | None, as_json: bool) -> None:
    """Print how many of them are in a format."""
    from lora_cot.validation.files import PREDICTION, count_outcomes

    counts = count_outcomes(path, cot_format, field or PREDICTION)
    rows = [(name, counts[name]) for name in ("rows", "complete", "partial", "none")]
    rows += [(f"  {fault}", number) for fault, number in counts["faults"].items()]
    print_found(counts, as_json, rows)


def _show(recipe: Any, count: int, page: Path, as_json: bool) -> None:
    """Print samples as the model sees them, and write them to a page."""
    from lora_cot.validation.show import show_samples, write_page

    shown = show_samples(recipe, count)
    write_page(shown, recipe, page)
    values = {"recipe": recipe.name, "html": str(page), "samples": [sample.to_json() for sample in shown]}
    print_found(values, as_json, [line for sample in shown for line in sample.lines()])
    print(f"page: {page}", file=sys.stderr)
