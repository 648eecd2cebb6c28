"""`train`: the straight line from a recipe to a run's folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import EarlyStoppingCallback, PrinterCallback

from lora_cot.adapters.lora import attach, load_adapter, report
from lora_cot.backbones import Backbone
from lora_cot.backbones.loading import load_backbone
from lora_cot.checkpoints.folders import LOG_FILE, open_run, run_folder, save_adapter, write_recipe
from lora_cot.checkpoints.opening import find_adapter
from lora_cot.data.collate import Collator, as_dataset
from lora_cot.data.labels import Encoded, Encoder
from lora_cot.data.lint import check_gold, preflight
from lora_cot.data.sources import load_mixture
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.recipe import Recipe
from lora_cot.search.trace import Completion
from lora_cot.training.arguments import sft_config
from lora_cot.training.callbacks import LivenessCheck, RunLog
from lora_cot.training.quality import measure
from lora_cot.training.report import RunReport, ShownSample, write_report
from lora_cot.training.trainer import CotTrainer, peak_memory_gb
from lora_cot.types import Sample

SHOWN_SAMPLES = 4
"""Held-out samples whose answers before and after training go into the report."""


def train(recipe: Recipe, root: Path = Path("runs")) -> Path:
    """Run a recipe; returns the run's folder.

    Args:
        recipe: what to train, on what, how.
        root: the run's folder is made in here.

    Raises:
        RunError: the folder is in use or taken.
        DataError, BackboneError, AdapterError: the input is wrong; nothing was trained.
        TrainingError: an adapter gets no gradient.
    """
    folder, state = run_folder(recipe, root), PartialState()
    with open_run(folder) if state.is_main_process else nullcontext():
        torch.manual_seed(int(recipe.training.library.get("seed", 0)))
        cot_format = recipe.format.build()
        arguments = sft_config(recipe, folder)
        samples, held_out = (load_mixture(sources, cot_format) for sources in (recipe.data.train, recipe.data.eval))
        check_gold(samples, "data.train", cot_format)
        check_gold(held_out, "data.eval", cot_format)
        if not samples:
            raise DataError(Problem("data.train", "there is nothing to train on", "name at least one source"))
        backbone = _prepare(recipe)
        cot_format = cot_format.spelled(backbone.family.tag_style)
        if state.is_main_process:
            write_recipe(recipe, folder)
        collator = _collator(recipe, backbone, cot_format)
        preflight(collator, samples)
        preflight(collator, held_out)
        _show(_counts(samples, held_out), report_lines(backbone), _preview(collator, samples[0]))
        shown = held_out[:SHOWN_SAMPLES]
        before = _answers(recipe, backbone, cot_format, shown)
        begin = time.perf_counter()
        trainer = _trainer(recipe, arguments, backbone, cot_format, collator, samples, held_out, folder / LOG_FILE)
        trainer.train()
        seconds = time.perf_counter() - begin
        if state.is_main_process:
            save_adapter(backbone, recipe, folder / "adapter")
        after = _answers(recipe, backbone, cot_format, shown)
        pairs = [ShownSample(*triple) for triple in zip(shown, before, after, strict=True)]
        history = trainer.state.log_history
        if state.is_main_process:
            write_report(RunReport(recipe, report(backbone), history, pairs, seconds, peak_memory_gb()), folder)
        state.wait_for_everyone()
        return folder


def _prepare(recipe: Recipe) -> Backbone:
    backbone = load_backbone(recipe.model, recipe.quantization)
    if recipe.model.adapter is not None:
        folder = find_adapter(str(recipe.model.adapter)) or recipe.model.adapter
        return load_adapter(backbone, folder, trainable=True)
    return attach(backbone, recipe.lora)


def _collator(recipe: Recipe, backbone: Backbone, cot_format: CotFormat) -> Collator:
    limits = (recipe.data.max_pixels, recipe.training.library.get("max_length"))
    return Collator(Encoder(backbone.processor, cot_format), backbone.family.image_inputs, *limits)


def _trainer(
    recipe: Recipe,
    arguments: Any,
    backbone: Backbone,
    cot_format: CotFormat,
    collator: Collator,
    samples: list[Sample],
    held_out: list[Sample],
    log: Path,
) -> CotTrainer:
    callbacks: list[Any] = [RunLog(log), LivenessCheck(backbone.model)]
    if recipe.training.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(recipe.training.early_stopping_patience))
    trainer = CotTrainer(
        backbone,
        cot_format,
        recipe,
        held_out[: recipe.training.eval_generations],
        args=arguments,
        train_dataset=as_dataset(samples),
        eval_dataset=as_dataset(held_out) if held_out else None,
        data_collator=collator,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _answers(recipe: Recipe, backbone: Backbone, cot_format: CotFormat, samples: Sequence[Sample]) -> list[Completion]:
    return measure(backbone, cot_format, samples, recipe).completions if samples else []


def _counts(samples: Sequence[Sample], held_out: Sequence[Sample]) -> str:
    without = sum(not sample.images for sample in samples)
    return f"{len(samples)} samples to train on, {without} of them without an image; {len(held_out)} held out"


def _preview(collator: Collator, sample: Sample) -> str:
    """A sample as text, its trained part between marks."""
    return mark_trained(collator.encode(sample), collator.encoder.tokenizer)


def mark_trained(encoded: Encoded, tokenizer: Any) -> str:
    """The text of a sample, trained parts between ⟦ and ⟧."""
    text, start = "", 0
    ids, labels = encoded.input_ids, encoded.labels
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (labels[end] < 0) != (labels[start] < 0):
            piece = tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
            text += piece if labels[start] < 0 else f"⟦{piece}⟧"
            start = end
    return text


def report_lines(backbone: Backbone) -> str:
    """The table of parts as text."""
    rows = [("part", "adapted layers", "trained", "parameters", "precision")]
    rows += [(p.part, str(p.adapted), f"{p.trained:,}", f"{p.parameters:,}", p.precision) for p in report(backbone)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _show(*texts: str) -> None:
    if PartialState().is_main_process:
        print(*texts, sep="\n\n", end="\n\n", file=sys.stderr, flush=True)
