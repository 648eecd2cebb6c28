"""`merge`: an adapter into the full-precision base, verified before the folder appears."""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lora_cot.adapters.lora import load_adapter
from lora_cot.backbones import Backbone
from lora_cot.backbones.loading import load_backbone, save_processor
from lora_cot.checkpoints.folders import pass_folders, write_recipe
from lora_cot.checkpoints.opening import find_adapter, saved_recipe
from lora_cot.data.sources import load_data
from lora_cot.errors import MergeError, Problem, RunError
from lora_cot.formats import CotFormat
from lora_cot.merging.verify import Agreement, Recorded, compare, record
from lora_cot.recipe import Recipe
from lora_cot.recipe.schema import ModelSection
from lora_cot.types import Sample

PROBES = 64
"""Held-out samples that a merge is verified on."""
LEAST_AGREEMENT = {"float32": 0.999, "bfloat16": 0.98, "float16": 0.98}
"""Share of tokens that must agree between adapter and merged model, by the precision of the merged weights."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge was measured to be."""

    folder: str
    base: str
    dtype: str
    probes: int
    adapter_vs_merged: Agreement
    """On the same full-precision base weights: the merge's own error."""
    base_vs_merged: Agreement
    """How far the adapter moved the base; no difference means that there was nothing to merge."""
    trained_vs_merged: Agreement | None
    """Against the adapter on the quantised base it was trained on: the drift that merging a QLoRA brings. None if the
    base was not quantised."""


def merge(run: str | Path, output: Path | None = None) -> list[MergeReport]:
    """Merge a run's adapter into its base in full precision and write the model beside it.

    Args:
        run: a run or an adapter folder.
        output: where to; `merged` in the run if not given. The adapters of a split format become one model for each pass
            in there.

    Returns:
        One report for each pass; a single one unless the format is split.

    Raises:
        RunError: no adapter there, or the output exists.
        MergeError: the merged model is not the adapter's model; nothing was written.
    """
    adapter = find_adapter(str(run))
    if adapter is None:
        raise RunError(Problem(str(run), "no adapter to merge here", "name a run or an adapter folder"))
    output = output or (Path(run) / "merged" if adapter != Path(run) else adapter.with_name(adapter.name + "-merged"))
    if output.exists():
        raise RunError(Problem(str(output), "the output folder exists already", "remove it, or set --output"))
    recipe = saved_recipe(adapter)
    samples = _probes(recipe)
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    try:
        reports = []
        sources, targets = pass_folders(adapter, recipe).values(), pass_folders(staging, recipe).values()
        for one, source, target in zip(recipe.format.build().passes, sources, targets, strict=True):
            target.mkdir(exist_ok=True)
            tuned, base = _merge_into(target, recipe, source, one, samples)
            report = _verify(target, recipe, source, one, samples, tuned, base)
            report = replace(report, folder=str(output / target.relative_to(staging)))
            text = json.dumps(asdict(report), indent=2)
            (target / "merge_report.json").write_text(text + "\n", encoding="utf-8")
            reports.append(report)
        write_recipe(recipe, staging)
        staging.chmod(0o755)  # mkdtemp makes it private
        staging.rename(output)
        return reports
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _probes(recipe: Recipe) -> list[Sample]:
    samples, held_out = load_data(recipe.data, recipe.format.build())
    samples = held_out or samples
    if not samples:
        raise MergeError(Problem("data.eval", "no sample to verify the merge on", "the recipe must name data"))
    return samples[:PROBES]


def _merge_into(
    staging: Path, recipe: Recipe, adapter: Path, cot_format: CotFormat, samples: Sequence[Sample]
) -> tuple[Recorded, Recorded]:
    """Write the merged model; returns the records of adapter and base, both on the full-precision weights."""
    backbone = load_adapter(load_backbone(recipe.model), adapter)
    tuned = record(backbone, cot_format, samples, recipe.data.max_pixels)
    with backbone.model.disable_adapter():
        base = record(backbone, cot_format, samples, recipe.data.max_pixels, like=tuned)
    try:
        merged = backbone.model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise MergeError(Problem(str(adapter), f"the adapter holds values that are not finite: {error}")) from None
    left = [name for name, _ in merged.named_parameters() if "lora_" in name]
    if left:
        raise MergeError(Problem(str(adapter), f"{len(left)} adapter weights were left over, {left[0]} among them"))
    merged.save_pretrained(staging)
    save_processor(backbone, staging)
    backbone.family.save_whole(backbone.processor, staging)
    return tuned, base


def _verify(
    staging: Path,
    recipe: Recipe,
    adapter: Path,
    cot_format: CotFormat,
    samples: Sequence[Sample],
    tuned: Recorded,
    base: Recorded,
) -> MergeReport:
    gc.collect()
    reloaded = load_backbone(ModelSection(base=str(staging)))
    merged = record(reloaded, cot_format, samples, recipe.data.max_pixels, like=tuned)
    dtype = str(reloaded.model.dtype).removeprefix("torch.")
    own, moved = compare(tuned, merged), compare(base, merged)
    if own.top1_agreement < LEAST_AGREEMENT[dtype]:
        what = f"adapter and merged model agree on {own.top1_agreement:.2%} of {own.tokens} tokens"
        raise MergeError(Problem(str(adapter), what, f"at least {LEAST_AGREEMENT[dtype]:.1%} is needed; nothing was written"))
    if moved.max_logit_difference == 0:
        raise MergeError(Problem(str(adapter), "the merged model equals its base: the adapter changes nothing"))
    drift = None
    if recipe.quantization is not None:
        trained = record(_as_trained(recipe, adapter), cot_format, samples, recipe.data.max_pixels, like=tuned)
        drift = compare(trained, merged)
    return MergeReport(str(staging), recipe.model.base, dtype, len(samples), own, moved, drift)


def _as_trained(recipe: Recipe, adapter: Path) -> Backbone:
    gc.collect()
    return load_adapter(load_backbone(recipe.model, recipe.quantization), adapter)


def lines(report: MergeReport) -> list[tuple[str, Any]]:
    """The report as rows for people."""
    rows = [
        ("merged into", f"{report.base} ({report.dtype})"),
        ("folder", report.folder),
        ("adapter = merged", _words(report.adapter_vs_merged)),
        ("base ≠ merged", _words(report.base_vs_merged)),
    ]
    if report.trained_vs_merged:
        rows.append(("drift from the quantised base", _words(report.trained_vs_merged)))
    return rows


def _words(agreement: Agreement) -> str:
    return (
        f"{agreement.top1_agreement:.2%} of {agreement.tokens} tokens agree, logits differ by at most "
        f"{agreement.max_logit_difference:.2g}"
    )
