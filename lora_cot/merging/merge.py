"""`merge`: an adapter into its base, streamed, and verified before the folder appears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from lora_cot.cards.card import write_merged_card
from lora_cot.cards.facts import Facts
from lora_cot.checkpoints.folders import write_recipe
from lora_cot.checkpoints.layout import pass_folders
from lora_cot.checkpoints.opening import find_adapter, saved_recipe
from lora_cot.checkpoints.store import make_durable
from lora_cot.data.sources import load_data
from lora_cot.errors import DataError, MergeError, Problem, RunError, nearest
from lora_cot.merging.measure import LEARN, Held, Written, prove, refused_file
from lora_cot.merging.onto import Onto, Ready, make_ready, write_model
from lora_cot.merging.plan import MergePlan
from lora_cot.merging.report import Merged, MergeReport
from lora_cot.merging.staging import KEPT, begin, check_room, fingerprint, keep, put_back, staged
from lora_cot.recipe import Recipe


def merge(
    run: str | Path,
    output: Path | None = None,
    onto: Literal["auto", "full", "dequantized"] = "auto",
    verify: bool = True,
) -> Merged:
    """A run's adapter merged into its base, written beside it and reported on.

    A merge that was stopped goes on where it was when it is called again. One that was refused leaves what was measured in
    OUTPUT.refused.json, and its finished files for the next call, which may ask for something else.

    Args:
        run: a run, an adapter folder or a hub id.
        output: where to; RUN/merged, or NAME-merged here of a hub id, if not given. Adapters of a split format become a
            model for each pass in there.
        onto: full: the base as it is published. dequantized: what the 4-bit weights stand for that the adapter was
            trained on. auto: full for a base that was not quantised in 4 bits; else both are made, and the one whose loss
            on held-out gold answers is lower is kept, so there must be some. Closeness to the adapter could not choose: the
            dequantised one is the adapter's own model, and is closer whatever it is worth.
        verify: hold the result against the adapter's model, on held-out samples; on those it was trained on if the recipe
            names no others, and the report says so. Without it no model is loaded, so auto cannot choose for a quantised
            base: that is refused, for either choice would be a guess. Some rows of every tensor are held against PEFT's own
            merge either way.

    Raises:
        RunError: no adapter there; the output exists, or is being written; no room on the disk; nothing to choose by.
        DataError: the data to verify it on are not there.
        MergeError: the merged model is not the adapter's model, or it is its base; no folder appears.
        UnprovenError: the models were measured to be too far apart, or could not be measured for want of memory.
    """
    adapter = find_adapter(str(run))
    if adapter is None:
        raise RunError(Problem(str(run), "no adapter to merge here", "name a run, an adapter folder or a hub id"))
    output = output.resolve() if output else _beside(Path(run), adapter)
    recipe = saved_recipe(adapter)
    ways = _ways(recipe, onto, verify)
    held = _samples(recipe, ways) if verify else None
    sources = pass_folders(adapter, recipe)
    with staged(output) as staging:
        written = _write_all(recipe, sources, ways, staging)
        reports = prove(recipe, sources, held, written, output)
        for name, report in reports.items():
            values = {key: value for key, value in report.to_json().items() if key != "folder"}  # it says where it is itself
            keep(written[name, report.onto].folder, pass_folders(staging / KEPT, recipe)[name], values)
        folders = pass_folders(output, recipe)
        found = tuple(replace(report, folder=str(folders[name])) for name, report in reports.items())
        _finish(recipe, adapter, found, staging / KEPT, output)
    return Merged(output, found)


def _finish(recipe: Recipe, adapter: Path, reports: Sequence[MergeReport], kept: Path, output: Path) -> None:
    """Put the card and the recipe beside the models, and let the folder appear."""
    write_recipe(recipe, kept)
    write_merged_card(kept, recipe, Facts.read(adapter), [report.to_json() for report in reports])
    make_durable(kept)
    kept.rename(output)
    refused_file(output).unlink(missing_ok=True)


def _beside(run: Path, adapter: Path) -> Path:
    """Where a merged model goes that was not told: in its run, beside its adapter, or here if that is the hub's."""
    if not run.exists():
        return Path(str(run).partition("@")[0].rpartition("/")[2] + "-merged")
    adapter = adapter.resolve()  # `.` has no name
    return run / "merged" if adapter != run.resolve() else adapter.with_name(adapter.name + "-merged")


def _ways(recipe: Recipe, onto: str, verify: bool) -> tuple[Onto, ...]:
    """What the adapter is merged onto: one, or both to choose from."""
    allowed = ("auto", *get_args(Onto))
    if onto not in allowed:
        raise RunError(Problem("--onto", f"'{onto}' is not known", nearest(onto, allowed)))
    if onto != "auto":
        return (onto,)  # type: ignore[return-value]
    if recipe.quantization is None or not recipe.quantization.load_in_4bit:
        return ("full",)
    if not verify:
        what = "auto chooses by the loss of both models, and --no-verify loads none"
        raise RunError(Problem("--onto", what, "take --onto full or --onto dequantized"))
    return ("full", "dequantized")


def _write_all(
    recipe: Recipe, sources: Mapping[str, Path], ways: Sequence[Onto], staging: Path
) -> dict[tuple[str, Onto], Written]:
    """A merged model of each pass onto each thing, as far as an earlier call did not finish it."""
    ready = {(name, way): make_ready(recipe, folder, way) for name, folder in sources.items() for way in ways}
    plans = [one.plan for one in ready.values()]
    _check_changes(plans)
    begin(staging, fingerprint(plans, recipe.model_dump(mode="json", include={"model", "quantization"})))
    for name, place in pass_folders(staging / KEPT, recipe).items():
        put_back(place, {way: pass_folders(staging / way, recipe)[name] for way in get_args(Onto)})
    check_room(staging, plans)
    return {(name, way): _write(recipe, one, staging / way, name) for (name, way), one in ready.items()}


def _write(recipe: Recipe, ready: Ready, folder: Path, name: str) -> Written:
    """A merged model of a pass.

    Raises:
        MergeError: it is its base, value by value.
    """
    place = pass_folders(folder, recipe)[name]
    changed = write_model(ready, recipe, place)
    if not changed:
        raise _nothing(ready.plan.adapter.file.path.parent, f"; rounded to {ready.dtype}, none of its values is another")
    return Written(ready, place, changed)


def _check_changes(plans: Sequence[MergePlan]) -> None:
    """See that adapters change something, by their tensors alone.

    Raises:
        MergeError: one changes nothing.
    """
    for plan in plans:
        low = [change.low_rank for change in plan.adapter.changes.values()]
        other = any(change.replaced or change.term or change.rows for change in plan.adapter.changes.values())
        if not other and not any(one and (one.magnitude or plan.adapter.file.values(one.b).any()) for one in low):
            raise _nothing(plan.adapter.file.path.parent)


def _nothing(adapter: Path, how: str = "") -> MergeError:
    what = f"the merged model would equal its base: the adapter changes nothing{how}"
    return MergeError(Problem(str(adapter), what, LEARN))


def _samples(recipe: Recipe, ways: Sequence[Onto]) -> Held:
    """What a merge is measured on.

    Raises:
        DataError: the data are not all here.
        RunError: there is nothing held out to choose by.
        MergeError: there is nothing at all.
    """
    try:
        trained, held_out = load_data(recipe.data, recipe.format.build())
    except DataError as error:
        what = "a merge is verified on the data of the training, which are not all here"
        remedy = "bring them here, or merge without a proof: --onto full --no-verify"
        raise DataError([*error.problems, Problem("data", what, remedy)]) from None
    if not held_out and len(ways) > 1:
        what = "auto chooses by the loss on held-out gold answers, and the recipe names none but those that were trained on"
        remedy = "take --onto full or --onto dequantized, or name rows that were not trained on in the recipe's data.eval"
        raise RunError(Problem("--onto", what, remedy))
    if not held_out and not trained:
        remedy = "name rows in the recipe's data.eval, or merge with --no-verify"
        raise MergeError(Problem("data.eval", "no sample to verify the merge on", remedy))
    return Held(held_out or trained, "held_out" if held_out else "train")
