"""`train`: the straight line from a recipe to a run's folder."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import EarlyStoppingCallback, PrinterCallback

from lora_cot.adapters.lora import attach, detach, load_adapter, report
from lora_cot.backbones import Backbone
from lora_cot.backbones.loading import family_of, load_backbone, resolve_base
from lora_cot.checkpoints.folders import LOG_FILE, open_run, pass_folders, run_folder, save_adapter, write_recipe
from lora_cot.checkpoints.opening import find_adapter
from lora_cot.data.collate import Collator
from lora_cot.data.labels import Encoder
from lora_cot.data.lengths import Kept, keep_fitting
from lora_cot.data.sources import load_data
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.recipe import Recipe
from lora_cot.search.strategies import with_stages
from lora_cot.training.arguments import sft_config
from lora_cot.training.callbacks import LivenessCheck, NoInputGradients, RunLog
from lora_cot.training.console import parts_table, preview, sample_counts, show
from lora_cot.training.quality import answer_freely
from lora_cot.training.report import PassReport, RunReport, ShownSample, write_report
from lora_cot.training.trainer import CotTrainer, peak_memory_gb
from lora_cot.types import Sample
from lora_cot.validation.run import limit_of
from lora_cot.validation.start import check_gold, check_start

NOTHING = "(nothing)"
"""What a later pass is asked with where an earlier one wrote nothing: gold text in its place would flatter."""
SHOWN_SAMPLES = 4
"""Held-out samples whose answers before and after training go into the report."""


def train(recipe: Recipe, root: Path = Path("runs")) -> Path:
    """Run a recipe; returns the run's folder.

    A split format is trained pass by pass, each with an adapter of its own on the same base. Later passes are trained on
    gold text of the earlier ones and watched on what those wrote for the same sample.

    Args:
        recipe: what to train, on what, how.
        root: the run's folder is made in here.

    Raises:
        RunError: the folder is in use or taken.
        DataError, BackboneError, AdapterError: the input is wrong; nothing was trained.
        TrainingError: an adapter gets no gradient.
    """
    folder = run_folder(recipe, root)
    state = PartialState(cpu=not torch.accelerator.is_available())  # ranks on CPUs are only counted if it is told so
    with open_run(folder) if state.is_main_process else nullcontext():
        torch.manual_seed(int(recipe.training.library.get("seed", 0)))
        family = family_of(resolve_base(recipe.model.base), recipe.model.revision)
        for one in recipe.format.build().passes:
            sft_config(recipe, folder, family, one)  # what is wrong there is said before anything is loaded
        Encoder(family.load_processor(resolve_base(recipe.model.base), recipe.model.revision), recipe.format.build())
        samples, held_out = _load_data(recipe)
        backbone = load_backbone(recipe.model, recipe.quantization)
        cot_format = recipe.format.build().spelled(backbone.family.tag_style)
        if state.is_main_process:
            write_recipe(recipe, folder)
        shown = held_out[:SHOWN_SAMPLES]
        before = answer_freely(backbone, cot_format, shown, recipe)
        done, questions = [], held_out
        for one, place in zip(cot_format.passes, pass_folders(folder / "adapter", recipe).values(), strict=True):
            backbone = _adapted(recipe, backbone, place.name)
            show(f"Training {one.name}" if cot_format.split else "", parts_table(backbone))
            done.append(_train_pass(recipe, backbone, one, samples, held_out, questions, folder))
            if state.is_main_process:
                save_adapter(backbone, recipe, place, _initial(recipe, folder))
            if cot_format.split:
                questions = _handed_on(recipe, backbone, one, questions)
                backbone = load_backbone(recipe.model, recipe.quantization) if recipe.lora.rewrites_base else detach(backbone)
        state.wait_for_everyone()
        if cot_format.split:
            if state.is_main_process:
                write_recipe(recipe, folder / "adapter")
            for name, place in pass_folders(folder / "adapter", recipe).items():
                backbone = load_adapter(backbone, place, name)
        after = answer_freely(backbone, cot_format, shown, recipe)
        if state.is_main_process:
            pairs = [ShownSample(*triple) for triple in zip(shown, before, after, strict=True)]
            write_report(RunReport(recipe, done, pairs, peak_memory_gb()), folder)
        state.wait_for_everyone()
        return folder


def _load_data(recipe: Recipe) -> tuple[list[Sample], list[Sample]]:
    cot_format = recipe.format.build()
    samples, held_out = load_data(recipe.data, cot_format)
    check_gold(samples, "data.train", cot_format)
    check_gold(held_out, "data.eval", cot_format)
    if not samples:
        raise DataError(Problem("data.train", "there is nothing to train on", "name at least one source"))
    return samples, held_out


def _adapted(recipe: Recipe, backbone: Backbone, place: str) -> Backbone:
    """The base with a new adapter, or with the one to go on from."""
    if recipe.model.adapter is None:
        return attach(backbone, recipe.lora)
    folder = find_adapter(str(recipe.model.adapter)) or recipe.model.adapter
    return load_adapter(backbone, folder / place if (folder / place).is_dir() else folder, trainable=True)


def _initial(recipe: Recipe, folder: Path) -> Path | None:
    """Where the adapter is kept as it began, if its beginning rewrote the base."""
    return folder / "checkpoints" / "initial" if recipe.lora.rewrites_base and recipe.model.adapter is None else None


def _train_pass(
    recipe: Recipe,
    backbone: Backbone,
    one: CotFormat,
    samples: list[Sample],
    held_out: list[Sample],
    questions: list[Sample],
    folder: Path,
) -> PassReport:
    """Train one adapter; the whole run, unless the format is split.

    Args:
        recipe: of the run.
        backbone: with its adapter.
        one: the format, or a pass of it.
        samples: trained on.
        held_out: whose loss is measured, on gold text.
        questions: the same, with what earlier passes wrote; they are answered freely.
        folder: the run's.
    """
    checkpoints = folder / "checkpoints" / (one.name if one.given is not None else "")
    arguments = sft_config(recipe, checkpoints, backbone.family, one)
    state = PartialState()
    if (initial := _initial(recipe, folder)) and state.is_main_process:
        backbone.model.save_pretrained(initial)
    state.wait_for_everyone()
    collator = make_collator(recipe, backbone, one)
    workers = arguments.dataloader_num_workers
    train_set = keep_fitting(samples, collator.limit, "data.train", workers)
    eval_set = keep_fitting(held_out, collator.limit, "data.eval", workers)
    if not train_set.samples:
        raise DataError(Problem("data.train", "every sample is too long", "raise training.max_length"))
    _check_reached(backbone, train_set.samples)
    notes = check_start(collator, train_set.samples, eval_set.samples)
    said = "" if one.given else "\n".join(notes)  # the same in each pass of a split format
    show(said, sample_counts(train_set, eval_set), preview(collator, train_set.samples[0]))
    trainer = make_trainer(recipe, arguments, backbone, one, collator, (train_set, eval_set), questions, folder / LOG_FILE)
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    history = trainer.state.log_history
    return PassReport(one, report(backbone), history, seconds, train_set.dropped + eval_set.dropped, train_set.shrunk)


def _check_reached(backbone: Backbone, samples: list[Sample]) -> None:
    """See that every sample's loss depends on something that is trained.

    Raises:
        DataError: samples without an image, where only what sees images is trained.
    """
    sees_images = {"vision_encoder", "projector"}
    if {line.part for line in report(backbone) if line.trained} <= sees_images:
        blind = [sample.id for sample in samples if not sample.images]
        if blind:
            what = f"{len(blind)} samples have no image, {blind[0]} among them, and only what sees images is trained"
            raise DataError(Problem("lora.parts", what, "adapt language_model too, or take them out"))


def make_collator(recipe: Recipe, backbone: Backbone, cot_format: CotFormat) -> Collator:
    """What encodes and batches a run's samples."""
    limit = limit_of(recipe, backbone.family, backbone.processor, cot_format)
    return Collator(limit, backbone.family.image_inputs)


def make_trainer(
    recipe: Recipe,
    arguments: Any,
    backbone: Backbone,
    cot_format: CotFormat,
    collator: Collator,
    data: tuple[Kept, Kept],
    questions: list[Sample],
    log: Path,
) -> CotTrainer:
    """The trainer of one adapter, with what watches it."""
    callbacks: list[Any] = [RunLog(log, cot_format.name if cot_format.given is not None else None)]
    callbacks.append(NoInputGradients())
    callbacks.append(LivenessCheck(backbone, any(sample.images for sample in data[0].samples)))
    if recipe.training.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(recipe.training.early_stopping_patience))
    asked = questions[: recipe.training.eval_generations]
    options = {"args": arguments, "data_collator": collator, "callbacks": callbacks}
    trainer = CotTrainer(backbone, cot_format, recipe, data, asked, **options)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _handed_on(recipe: Recipe, backbone: Backbone, one: CotFormat, questions: list[Sample]) -> list[Sample]:
    """The questions that are asked again, with what this pass wrote in place of the gold text."""
    asked = questions[: max(recipe.training.eval_generations, SHOWN_SAMPLES)]
    completions = answer_freely(backbone, one, asked, recipe)
    stage = one.stages[0].name
    return [
        with_stages(sample, {stage: completion.text.strip() or NOTHING})
        for sample, completion in zip(asked, completions, strict=True)
    ]
