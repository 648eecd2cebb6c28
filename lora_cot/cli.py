"""The command line: its verbs and how it ends. Each verb is a function in `commands/`.

Exit codes: 0 done, 2 the input is wrong, 1 it failed.
"""

from __future__ import annotations

import sys
import warnings

import typer

from lora_cot.commands import answers, models, rows, serving
from lora_cot.errors import LoraCotError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune, merge, search and evaluate vision-language models that reason in named stages.",
)
app.command()(models.train)
app.command()(models.plan)
app.command()(models.merge)
app.command()(models.push)
app.command("eval")(answers.evaluate)
app.command()(answers.compare)
app.command()(answers.score)
app.command()(answers.ask)
app.command()(serving.serve)
app.command()(rows.validate)
app.command()(rows.annotate)


def main() -> None:
    """Entry point: errors made for people are shown without a traceback."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft|accelerate")
    try:
        app()
    except LoraCotError as error:
        print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
