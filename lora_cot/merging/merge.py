"""`merge`: an adapter into its base, streamed, and verified before the folder appears."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from lora_cot.adapters.lora import load_adapter
from lora_cot.backbones import Backbone
from lora_cot.backbones.loading import load_backbone
from lora_cot.cards.card import write_merged_card
from lora_cot.cards.facts import Facts
from lora_cot.cards.support import SUPPORT
from lora_cot.checkpoints.folders import write_recipe
from lora_cot.checkpoints.layout import pass_folders
from lora_cot.checkpoints.opening import find_adapter, saved_recipe
from lora_cot.checkpoints.store import make_durable
from lora_cot.data.sources import load_data
from lora_cot.errors import DataError, MergeError, Problem, RunError, nearest
from lora_cot.formats import CotFormat
from lora_cot.merging.onto import Onto, Ready, make_ready, write_model
from lora_cot.merging.plan import Plan
from lora_cot.merging.report import MergeReport, bound_of, lines
from lora_cot.merging.staging import begin, check_room, fingerprint, staged
from lora_cot.merging.verify import Probes, Recorded, choose_probes, compare, record
from lora_cot.recipe import Recipe
from lora_cot.recipe.schema import ModelSection
from lora_cot.types import Sample

__all__ = ["MergeReport", "lines", "merge"]


@dataclass(frozen=True)
class Measured:
    """One merged model beside the adapter's."""

    adapter: Recorded
    """On the weights that were merged onto."""
    base: Recorded
    merged: Recorded


def merge(
    run: str | Path,
    output: Path | None = None,
    onto: Literal["auto", "full", "dequantized"] = "auto",
    verify: bool = True,
) -> list[MergeReport]:
    """Merge a run's adapter into its base and write the model beside it.

    A merge that was stopped goes on where it was when it is called again.

    Args:
        run: a run, an adapter folder or a hub id.
        output: where to; RUN/merged, or NAME-merged here of a hub id, if not given. Adapters of a split format become a
            model for each pass in there.
        onto: full: the base as it is published. dequantized: what the 4-bit weights stand for that the adapter was
            trained on. auto: full for a base that was not quantised in 4 bits; else both are made, and the one whose loss
            on held-out gold answers is lower is kept. Closeness to the adapter could not choose: the dequantised one is
            the adapter's own model, and is closer whatever it is worth.
        verify: hold the result against the adapter's model, on held-out samples. Without it no model is loaded, so auto
            cannot choose for a quantised base: that is refused, for either choice would be a guess.

    Returns:
        One report for each pass; a single one unless the format is split.

    Raises:
        RunError: no adapter there; the output exists, or is being written; no room on the disk; nothing to choose by.
        DataError: the data to verify it on are not there.
        MergeError: the merged model is not the adapter's model; nothing was written.
    """
    adapter = find_adapter(str(run))
    if adapter is None:
        raise RunError(Problem(str(run), "no adapter to merge here", "name a run, an adapter folder or a hub id"))
    output = output.resolve() if output else _beside(Path(run), adapter)
    recipe = saved_recipe(adapter)
    ways = _ways(recipe, onto, verify)
    samples = _held_out(recipe) if verify else None
    with staged(output) as staging:
        sources = pass_folders(adapter, recipe)
        ready = {(name, way): make_ready(recipe, folder, way) for name, folder in sources.items() for way in ways}
        plans = [one.plan for one in ready.values()]
        _check_changes(plans)
        begin(staging, fingerprint(plans, _quantization(recipe)))
        check_room(staging, plans)
        for (name, way), one in ready.items():
            write_model(one, recipe, pass_folders(staging / way, recipe)[name])
        reports = _compare(recipe, sources, samples, ready, staging)
        write_recipe(recipe, staging / "kept")
        write_merged_card(staging / "kept", recipe, Facts.read(adapter), [asdict(report) for report in reports])
        make_durable(staging / "kept")
        (staging / "kept").rename(output)
    return [
        replace(report, folder=str(pass_folders(output, recipe)[name])) for report, name in zip(reports, sources, strict=True)
    ]


def _beside(run: Path, adapter: Path) -> Path:
    """Where a merged model goes that was not told: in its run, beside its adapter, or here if that is the hub's."""
    if not run.exists():
        return Path(str(run).partition("@")[0].rpartition("/")[2] + "-merged")
    adapter = adapter.resolve()  # `.` has no name
    return run / "merged" if adapter != run.resolve() else adapter.with_name(adapter.name + "-merged")


def _compare(
    recipe: Recipe,
    sources: Mapping[str, Path],
    samples: Sequence[Sample] | None,
    ready: Mapping[tuple[str, Onto], Ready],
    staging: Path,
) -> list[MergeReport]:
    """Measure what was written, and keep of each pass one model; a report of each.

    Raises:
        MergeError: one is not the adapter's model.
    """
    ways: tuple[Onto, ...] = tuple(dict.fromkeys(way for _, way in ready))
    reports = []
    for one_pass, (name, source) in zip(recipe.format.build().passes, sources.items(), strict=True):
        made = {way: (ready[name, way], pass_folders(staging / way, recipe)[name]) for way in ways}
        probes = None if samples is None else choose_probes(samples, recipe, one_pass)
        measured, trained = _measure(recipe, source, one_pass, probes, made) if probes else ({}, None)
        report = _report(recipe, source, made, measured, trained, probes)
        reports.append(_keep(report, made[report.onto][1], pass_folders(staging / "kept", recipe)[name]))
    return reports


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


def _quantization(recipe: Recipe) -> dict[str, Any] | None:
    if recipe.quantization is None:
        return None
    return {**recipe.quantization.model_dump(mode="json"), "dtype": recipe.model.dtype}


def _check_changes(plans: Sequence[Plan]) -> None:
    """See that adapters change something, by their tensors alone.

    Raises:
        MergeError: one changes nothing.
    """
    for plan in plans:
        low = [change.low_rank for change in plan.adapter.changes.values()]
        other = any(change.replaced or change.term or change.rows for change in plan.adapter.changes.values())
        if not other and not any(one and (one.magnitude or plan.adapter.file.values(one.b).any()) for one in low):
            raise _nothing(plan.adapter.file.path.parent)


def _nothing(adapter: Path) -> MergeError:
    return MergeError(Problem(str(adapter), "the merged model would equal its base: the adapter changes nothing"))


def _held_out(recipe: Recipe) -> list[Sample]:
    try:
        samples, held_out = load_data(recipe.data, recipe.format.build())
    except DataError as error:
        what = "a merge is verified on the data of the training, which are not all here"
        remedy = "bring them here, or merge without a proof: --onto full --no-verify"
        raise DataError([*error.problems, Problem("data", what, remedy)]) from None
    samples = held_out or samples
    if not samples:
        raise MergeError(Problem("data.eval", "no sample to verify the merge on", "the recipe must name data"))
    return samples


def _keep(report: MergeReport, source: Path, target: Path) -> MergeReport:
    """Put the model that was chosen, with its report, where the output grows."""
    shutil.rmtree(target, ignore_errors=True)  # an earlier call may have been stopped here
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    values = {key: value for key, value in asdict(report).items() if key != "folder"}  # it says where it is itself
    (target / "merge_report.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return report


Made = Mapping[Onto, tuple[Ready, Path]]
"""By what it was merged onto: the merge, and the folder of the result."""


def _measure(
    recipe: Recipe, adapter: Path, cot_format: CotFormat, probes: Probes, made: Made
) -> tuple[dict[Onto, Measured], Recorded | None]:
    """Records of each merged model with those of what it was made of; and of the model as it was trained, if quantised."""
    like, found = None, {}
    for way, (_, folder) in made.items():
        tuned = _as_trained(recipe, adapter, way == "dequantized")
        with_adapter = record(tuned, cot_format, probes, like)
        like = like or with_adapter
        with tuned.model.disable_adapter():
            base = record(tuned, cot_format, probes, like, answers=False)
        del tuned
        gc.collect()
        merged = load_backbone(ModelSection(base=str(folder), dtype=recipe.model.dtype))  # as `open_model` does
        found[way] = Measured(with_adapter, base, record(merged, cot_format, probes, like))
        del merged
    if recipe.quantization is None or "dequantized" in found:
        return found, found["dequantized"].adapter if "dequantized" in found else None
    return found, record(_as_trained(recipe, adapter, True), cot_format, probes, like)


def _as_trained(recipe: Recipe, adapter: Path, quantized: bool) -> Backbone:
    gc.collect()
    return load_adapter(load_backbone(recipe.model, recipe.quantization if quantized else None), adapter)


def _report(
    recipe: Recipe,
    adapter: Path,
    made: Made,
    measured: Mapping[Onto, Measured],
    trained: Recorded | None,
    probes: Probes | None,
) -> MergeReport:
    """The report of the model that is kept: the one of the lower loss.

    Raises:
        MergeError: it is not the adapter's model, or it is its base.
    """
    kept = min(made, key=lambda way: measured[way].merged.loss) if measured else next(iter(made))
    ready, folder = made[kept]
    engines = SUPPORT[ready.family.name].to_json()
    about = (str(folder), recipe.model.base, ready.family.name, kept, ready.dtype)
    if probes is None:
        return MergeReport(*about, 0, 0, None, bound_of(ready.dtype), None, None, None, False, engines)
    records = measured[kept]
    own, moved = compare(records.adapter, records.merged), compare(records.base, records.merged)
    bound = bound_of(ready.dtype, records.adapter.dtype, records.merged.dtype)
    if broken := [Problem(str(adapter), what) for what in bound.broken(own)]:
        told = Problem(str(adapter), f"the merged model ({ready.dtype}) is not the adapter's model", "nothing was written")
        raise MergeError([*broken, told])
    if moved.max_logit_difference == 0:
        raise _nothing(adapter)
    drift = compare(trained, records.merged) if trained else None
    losses: dict[str, float] = {way: one.merged.loss for way, one in measured.items()}
    losses["adapter"] = (trained or records.adapter).loss
    counts = (len(probes.samples), probes.with_images)
    return MergeReport(*about, *counts, own, bound, moved, drift, losses, True, engines)
