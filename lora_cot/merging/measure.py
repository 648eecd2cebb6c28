"""Merged models beside the adapter's: what is measured, which of two is kept, and what is refused."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lora_cot.adapters.lora import load_adapter
from lora_cot.backbones import Backbone
from lora_cot.backbones.loading import load_backbone
from lora_cot.cards.support import SUPPORT
from lora_cot.checkpoints.store import replace_text
from lora_cot.errors import Problem, UnprovenError
from lora_cot.formats import CotFormat
from lora_cot.merging.onto import Onto, Ready
from lora_cot.merging.report import MergeReport, bound_of
from lora_cot.merging.staging import staging_folder
from lora_cot.merging.verify import Probes, Recorded, choose_probes, compare, record
from lora_cot.recipe import Recipe
from lora_cot.recipe.model import ModelSection
from lora_cot.types import Sample

LEARN = "train it for longer, or with a higher training.learning_rate"
"""What is to be done about an adapter that changes nothing."""


@dataclass(frozen=True)
class Held:
    """What models are measured on."""

    samples: Sequence[Sample]
    source: Literal["held_out", "train"]


@dataclass(frozen=True)
class Written:
    """A merged model that is written, and not proven."""

    ready: Ready
    folder: Path
    changed: Mapping[str, int]
    """How many values of each changed tensor are other than what was merged onto."""


@dataclass(frozen=True)
class Measured:
    """One merged model beside the adapter's."""

    adapter: Recorded
    """On the weights that were merged onto."""
    base: Recorded
    merged: Recorded


Made = Mapping[Onto, Written]
"""By what it was merged onto."""


def prove(
    recipe: Recipe, sources: Mapping[str, Path], held: Held | None, written: Mapping[tuple[str, Onto], Written], output: Path
) -> dict[str, MergeReport]:
    """Measure what was written: of each pass, the report of the model that is kept.

    Args:
        recipe: of the run.
        sources: the adapter of each pass.
        held: samples; None if nothing is to be measured.
        written: by pass, and by what it was merged onto.
        output: where the models are to appear.

    Raises:
        UnprovenError: one is not the adapter's model, or memory ran out.
    """
    reports: dict[str, MergeReport] = {}
    problems: list[Problem] = []
    for one_pass, (name, source) in zip(recipe.format.build().passes, sources.items(), strict=True):
        made = {way: one for (of, way), one in written.items() if of == name}
        if held is None:
            reports[name] = _unmeasured(recipe, made)
            continue
        probes = choose_probes(held.samples, recipe, one_pass)
        with _enough_memory(output):
            measured, trained = _measure(recipe, source, one_pass, probes, made)
        reports[name], found = _report(recipe, source, made, measured, trained, probes, held.source)
        problems += found
    if problems:
        raise _refused(output, reports, problems)
    return reports


def refused_file(output: Path) -> Path:
    """Where it is said why a merge was refused."""
    return output.with_name(f"{output.name}.refused.json")


def _refused(output: Path, reports: Mapping[str, MergeReport], problems: Sequence[Problem]) -> UnprovenError:
    """The error of a merge that did not hold; what was measured is left beside where it would have appeared."""
    passes = [{"pass": name, **report.to_json(), "folder": None, "verified": False} for name, report in reports.items()]
    values = {"refused": [str(problem) for problem in problems], "passes": passes}
    replace_text(refused_file(output), json.dumps(values, indent=2) + "\n")
    told = Problem(
        str(output),
        f"not written: a merged model is not the adapter's model; all that was measured is in {refused_file(output)}",
        f"the finished files are in {staging_folder(output)} for another call, with another --onto perhaps, or to be deleted",
    )
    return UnprovenError([*problems, told])


@contextmanager
def _enough_memory(output: Path) -> Iterator[None]:
    """Say it in our words if memory runs out while models are loaded or asked."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        what = "memory ran out while the merge was verified, which loads the adapter's model and the merged one, in turn"
        kept = f"{staging_folder(output)} has the finished files"
        remedy = f"call it again with --no-verify and --onto full or dequantized: {kept}"
        raise UnprovenError(Problem(str(output), what, remedy)) from None


def _measure(
    recipe: Recipe, adapter: Path, cot_format: CotFormat, probes: Probes, made: Made
) -> tuple[dict[Onto, Measured], Recorded | None]:
    """Records of each merged model with those of what it was made of; and of the model as it was trained, if quantised."""
    like, found = None, {}
    for way, one in made.items():
        tuned = _as_trained(recipe, adapter, way == "dequantized")
        with_adapter = record(tuned, cot_format, probes, like)
        like = like or with_adapter
        with tuned.model.disable_adapter():
            base = record(tuned, cot_format, probes, like, answers=False)
        del tuned
        gc.collect()
        merged = load_backbone(ModelSection(base=str(one.folder), dtype=recipe.model.dtype))  # as `open_model` does
        found[way] = Measured(with_adapter, base, record(merged, cot_format, probes, like))
        del merged
    if recipe.quantization is None or "dequantized" in found:
        return found, found["dequantized"].adapter if "dequantized" in found else None
    return found, record(_as_trained(recipe, adapter, True), cot_format, probes, like)


def _as_trained(recipe: Recipe, adapter: Path, quantized: bool) -> Backbone:
    gc.collect()
    return load_adapter(load_backbone(recipe.model, recipe.quantization if quantized else None), adapter)


def _unmeasured(recipe: Recipe, made: Made) -> MergeReport:
    """The report of a model that was only written."""
    ((way, one),) = made.items()
    return MergeReport(
        **_written(recipe, way, one),
        probes=0,
        probes_from=None,
        with_images=0,
        adapter_vs_merged=None,
        bound=bound_of(one.ready.dtype),
        base_vs_merged=None,
        trained_vs_merged=None,
        losses=None,
        verified=False,
    )


def _written(recipe: Recipe, way: Onto, one: Written) -> dict[str, Any]:
    """What a report says of a model that nothing was measured for."""
    return {
        "folder": str(one.folder),
        "base": recipe.model.base,
        "family": one.ready.family.name,
        "onto": way,
        "dtype": one.ready.dtype,
        "changed_tensors": len(one.changed),
        "changed_values": sum(one.changed.values()),
        "engines": SUPPORT[one.ready.family.name].to_json(),
    }


def _report(
    recipe: Recipe,
    adapter: Path,
    made: Made,
    measured: Mapping[Onto, Measured],
    trained: Recorded | None,
    probes: Probes,
    probes_from: Literal["held_out", "train"],
) -> tuple[MergeReport, list[Problem]]:
    """The report of the model that is kept, the one of the lower loss; and why it must not be."""
    kept = min(made, key=lambda way: measured[way].merged.loss)
    records = measured[kept]
    own, moved = compare(records.adapter, records.merged), compare(records.base, records.merged)
    bound = bound_of(made[kept].ready.dtype, records.adapter.dtype, records.merged.dtype).beside(moved.kl)
    problems = [Problem(str(adapter), what) for what in bound.broken(own)]
    if moved.max_logit_difference == 0:
        what = "the merged model answers as its base does: the adapter changes nothing"
        problems.append(Problem(str(adapter), what, LEARN))
    drift = compare(trained, records.merged) if trained else None
    losses: dict[str, float] = {way: one.merged.loss for way, one in measured.items()}
    losses["adapter"] = (trained or records.adapter).loss
    report = MergeReport(
        **_written(recipe, kept, made[kept]),
        probes=len(probes.samples),
        probes_from=probes_from,
        with_images=probes.with_images,
        adapter_vs_merged=own,
        bound=bound,
        base_vs_merged=moved,
        trained_vs_merged=drift,
        losses=losses,
        verified=not problems,
    )
    return report, problems
