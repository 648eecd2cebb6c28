"""Verbs that make models: plan, train, merge, push."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_cot.commands.options import (
    JsonOption,
    OntoOption,
    PublicOption,
    PushOption,
    VerifyOption,
    print_found,
)
from lora_cot.errors import LoraCotError, Problem, RunError


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe's YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Keys to change.")] = None,
    push: PushOption = None,
    public: PublicOption = False,
) -> None:
    """Train a recipe into runs/NAME. To use several GPUs: accelerate launch train.py RECIPE."""
    from lora_cot.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    _check_public(push, public)
    if push:
        from lora_cot.publishing.push import check_ready

        check_ready(push, public, "adapter", loaded)
    from lora_cot.evaluation.after import train as run

    folder = run(loaded)
    print(f"adapter  {folder / 'adapter'}\nreport   {folder / 'report.html'}")
    if push:
        from accelerate import PartialState

        if PartialState().is_main_process:
            pushed = _pushed(folder, push, public)
            print(f"pushed   {pushed.url} (commit {pushed.commit})")


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe's YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Keys to change.")] = None,
    vram_gb: Annotated[
        float | None, typer.Option(min=0.1, help="Memory of the GPU it is to fit; without, this machine's.")
    ] = None,
    tokens_per_second: Annotated[float | None, typer.Option(min=0.001, help="Rate; an earlier run's if not given.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell before training whether a recipe fits, what would make it fit, and how long it takes. Nothing is loaded."""
    from lora_cot.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from lora_cot.planning.plan import plan as run

    found = run(loaded, vram_gb, tokens_per_second)
    print_found(found.to_json(), as_json, found.lines())


def merge(
    run: Annotated[str, typer.Argument(help="A run, an adapter folder or a hub id.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the merged model; RUN/merged if not given.")] = None,
    onto: OntoOption = "auto",
    verify: VerifyOption = True,
    push: PushOption = None,
    public: PublicOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into its base and prove that the result is the same model. A merge that was stopped goes on."""
    _check_public(push, public)
    if push:
        from lora_cot.checkpoints.opening import find_adapter, saved_recipe
        from lora_cot.publishing.push import check_ready

        adapter = find_adapter(run)
        check_ready(push, public, "merged", saved_recipe(adapter) if adapter else None, verify)
    from lora_cot.merging.merge import merge as run_merge

    merged = run_merge(run, output, onto, verify)  # type: ignore[arg-type]
    values, rows = merged.to_json(), merged.lines()
    if push:
        pushed = _pushed(merged.folder, push, public)
        values, rows = values | {"push": pushed.to_json()}, [*rows, ("pushed", f"{pushed.url} (commit {pushed.commit})")]
    print_found(values, as_json, rows)


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run (its adapter), an adapter or a merged folder.")],
    repo: Annotated[str, typer.Argument(help="NAMESPACE/NAME on the hub.")],
    public: PublicOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing: list what would be, and what would not.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Push an adapter or a merged model to the hub, checked, in one commit; to a private repository unless --public."""
    from lora_cot.publishing.push import push as run

    report = run(folder, repo, public, dry_run)
    print_found(report.to_json(), as_json, report.lines())
    if report.refused:
        raise RunError(report.refused)


def _check_public(push: str | None, public: bool) -> None:
    if public and not push:
        what = "there is no push whose repository it could open"
        raise RunError(Problem("--public", what, "add --push REPO, or leave it out"))


def _pushed(folder: Path, repo: str, public: bool) -> Any:
    """The report of a push of what was just made.

    Raises:
        LoraCotError: it failed; what was made is there, and can be pushed by itself.
    """
    from lora_cot.publishing.push import push as run

    try:
        return run(folder, repo, public)
    except LoraCotError:
        print(f"{folder} is whole: lora-cot push {folder} {repo}{' --public' * public}", file=sys.stderr)
        raise
