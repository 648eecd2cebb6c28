"""`train`: the straight line from a recipe to a run's folder."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import EarlyStoppingCallback, PrinterCallback

from lora_cot.adapters.lora import attach, detach, load_adapter, report
from lora_cot.backbones import Backbone
from lora_cot.backbones.loading import limit_of, load_backbone, load_processor
from lora_cot.backbones.zero import splits_on_load, whole
from lora_cot.cards.support import SUPPORT
from lora_cot.checkpoints.folders import (
    LOG_FILE,
    PASSES,
    WRITTEN,
    open_run,
    run_folder,
    save_adapter,
    write_recipe,
)
from lora_cot.checkpoints.layout import pass_folders
from lora_cot.checkpoints.opening import find_adapter
from lora_cot.checkpoints.store import MANIFEST
from lora_cot.checkpoints.store import read as read_checkpoint
from lora_cot.data.collate import Collator
from lora_cot.data.lengths import Kept, keep_fitting
from lora_cot.errors import DataError, Problem
from lora_cot.formats import CotFormat
from lora_cot.recipe import Recipe
from lora_cot.search.trace import Completion
from lora_cot.training.arguments import sft_config
from lora_cot.training.attended import attended_words
from lora_cot.training.callbacks import LivenessCheck, NoInputGradients, RunLog
from lora_cot.training.console import parts_table, preview, sample_counts, show
from lora_cot.training.hand_off import handed_on, write_texts
from lora_cot.training.loop import Keeping
from lora_cot.training.quality import answer_freely
from lora_cot.training.report import PassReport, RunReport, ShownAnswers, write_report
from lora_cot.training.resume import Start, checkpoint_root, find_start
from lora_cot.training.samples import Splits, check_reached, load_samples
from lora_cot.training.sharding import EngineCheck, processes, taken_off
from lora_cot.training.sharding_limits import stored
from lora_cot.training.trainer import CotTrainer, peak_memory_gb
from lora_cot.types import Sample
from lora_cot.validation.start import check_start

SHOWN_SAMPLES = 4
"""Held-out samples whose answers before and after training go into the report; none under ZeRO-3 without eval_generations,
so that a base too large for one GPU is never gathered."""


def train(recipe: Recipe, root: Path = Path("runs")) -> Path:
    """Run a recipe; returns the run's folder.

    A split format is trained pass by pass, each with an adapter of its own on the same base. Later passes are watched on
    what the earlier ones wrote for the same sample, and trained on gold text of them or on that, as the recipe says.

    A run that was stopped, at whatever moment, goes on at its newest good checkpoint as if it had not been.

    Args:
        recipe: what to train, on what, how.
        root: the run's folder is made in here.

    Raises:
        RunError: the folder is in use or taken; its unfinished run is of another recipe, base or data.
        DataError, BackboneError, AdapterError: the input is wrong; nothing was trained.
        TrainingError: an adapter gets no gradient, a loss is not finite, or a checkpoint cannot be written.
        StoppedError: by SIGTERM.
    """
    folder = run_folder(recipe, root)
    with processes(recipe) as state, open_run(folder, recipe) if state.is_main_process else nullcontext(False) as goes_on:
        torch.manual_seed(_seed(recipe))
        family, processor = load_processor(recipe.model)
        plain = recipe.format.build()
        arguments = [sft_config(recipe, folder, family, one) for one in plain.passes]  # what is wrong there is said at once
        family.encoder(processor, plain)
        loaded = load_samples(recipe, family, processor, arguments[0].dataloader_num_workers)
        samples, held_out = loaded.train, loaded.held_out
        start = find_start(folder, goes_on, recipe, (samples, held_out), arguments[0])
        backbone = load_backbone(recipe.model, stored(recipe, family))
        show(f"once merged, it can be served by: {SUPPORT[family.name].line()}")
        cot_format = plain.spelled(backbone.family.tag_style)
        with state.local_main_process_first():
            backbone.prepare([*samples, *held_out], recipe.data.max_pixels)
        shown = held_out[:SHOWN_SAMPLES] if recipe.training.eval_generations or not splits_on_load() else []
        before = answer_freely(backbone, cot_format, shown, recipe)
        data, done = Splits(samples, held_out, held_out), []
        for one in cot_format.passes:
            backbone, data, trained = _run_pass(recipe, backbone, one, data, folder, start)
            done.append(trained)
        state.wait_for_everyone()
        if cot_format.split:
            backbone = _with_all_passes(recipe, backbone, folder / "adapter")
        after = _shown(recipe, backbone, cot_format, shown, before)
        if state.is_main_process:
            about = {"sha256": start.about["inputs"]["data"], "used": loaded.used}
            write_report(RunReport(recipe, done, after, peak_memory_gb(), family.name, about), folder)
        state.wait_for_everyone()
        return folder


def _run_pass(
    recipe: Recipe, backbone: Backbone, one: CotFormat, data: Splits, folder: Path, start: Start
) -> tuple[Backbone, Splits, PassReport]:
    """Train one adapter and leave it in the run's folder; of a split format, unless that is done, and hand its texts on.

    Returns:
        The base, without the adapter if another pass follows or followed; what the next pass takes; how it went.
    """
    split = one.given is not None
    place = pass_folders(folder / "adapter", recipe)[one.name if split else "default"]
    record = folder / PASSES / f"{one.name if split else 'default'}.json"
    if record.is_file():
        done = PassReport.read(record, one)
        show(f"{one.name}: trained already")
        backbone = load_adapter(backbone, place)
    else:
        torch.manual_seed(_seed(recipe))  # whatever was drawn before: a run that goes on begins here
        backbone = _adapted(recipe, backbone, place.name)
        show(f"Training {one.name}" if split else "", parts_table(backbone))
        done = _train_pass(recipe, backbone, one, data, folder, start)
        with whole(backbone.model, trained=True):
            if PartialState().is_main_process:
                save_adapter(backbone, recipe, place, _initial(recipe, folder))
                done.write(record)
        PartialState().wait_for_everyone()
    if not split:
        return backbone, data, done
    if one.name != recipe.format.build().passes[-1].name:
        data = _hand_on(recipe, backbone, one, data, folder / WRITTEN / one.name)
    rewritten = recipe.lora.rewrites_base
    return load_backbone(recipe.model, stored(recipe, backbone.family)) if rewritten else detach(backbone), data, done


def _with_all_passes(recipe: Recipe, backbone: Backbone, folder: Path) -> Backbone:
    """The base with the adapters of all passes, whose common folder gets the recipe."""
    if PartialState().is_main_process:
        write_recipe(recipe, folder)
    for name, place in pass_folders(folder, recipe).items():
        backbone = load_adapter(backbone, place, name)
    return backbone


def _hand_on(recipe: Recipe, backbone: Backbone, one: CotFormat, data: Splits, folder: Path) -> Splits:
    """What the next pass takes, with this one's texts as the recipe says."""
    asked = handed_on(data.questions, one, write_texts(backbone, one, data.questions, recipe, folder / "eval.jsonl"))
    if recipe.training.hand_on == "gold":
        return replace(data, questions=asked)
    trained = handed_on(data.train, one, write_texts(backbone, one, data.train, recipe, folder / "train.jsonl"))
    return Splits(trained, asked, asked)


def _shown(
    recipe: Recipe, backbone: Backbone, cot_format: CotFormat, samples: list[Sample], before: list[Completion]
) -> list[ShownAnswers]:
    """Held-out questions with the answers before training and now, and what was looked at; on all ranks at once."""
    after = answer_freely(backbone, cot_format, samples, recipe)
    words = [attended_words(backbone, cot_format, sample, recipe.data.max_pixels) for sample in samples]
    return [ShownAnswers(*one) for one in zip(samples, before, after, words, strict=True)]


def _seed(recipe: Recipe) -> int:
    return int(recipe.training.library.get("seed", 0))


def _adapted(recipe: Recipe, backbone: Backbone, place: str) -> Backbone:
    """The base with a new adapter, or with the one to go on from."""
    if recipe.model.adapter is None:
        return attach(backbone, recipe.lora)
    folder = find_adapter(recipe.model.adapter) or Path(recipe.model.adapter)
    if (folder / MANIFEST).is_file():
        # One of a run: as it was written, or not at all.
        read_checkpoint(folder, "name another checkpoint, or the adapter of a finished run")
    return load_adapter(backbone, folder / place if (folder / place).is_dir() else folder, trainable=True)


def _initial(recipe: Recipe, folder: Path) -> Path | None:
    """Where the adapter is kept as it began, if its beginning rewrote the base."""
    return folder / "checkpoints" / "initial" if recipe.lora.rewrites_base and recipe.model.adapter is None else None


def _train_pass(recipe: Recipe, backbone: Backbone, one: CotFormat, data: Splits, folder: Path, start: Start) -> PassReport:
    """Train one adapter, which the backbone has; the whole run, unless the format is split."""
    checkpoints = checkpoint_root(folder, one.name if one.given is not None else None)
    arguments = sft_config(recipe, checkpoints, backbone.family, one)
    state = PartialState()
    if (initial := _initial(recipe, folder)) and state.is_main_process:
        backbone.model.save_pretrained(initial)
    state.wait_for_everyone()
    collator = make_collator(recipe, backbone, one)
    workers = arguments.dataloader_num_workers
    train_set = keep_fitting(data.train, collator.limit, "data.train", workers)
    eval_set = keep_fitting(data.held_out, collator.limit, "data.eval", workers)
    if not train_set.samples:
        raise DataError(Problem("data.train", "every sample is too long", "raise training.max_length"))
    check_reached(backbone, train_set.samples)
    notes = check_start(collator, train_set.samples, eval_set.samples)
    said = "" if one.given else "\n".join(notes)  # the same in each pass of a split format
    show(said, sample_counts(train_set, eval_set), preview(collator, train_set.samples[0]))
    kept = (train_set, eval_set)
    keeping = Keeping(folder, checkpoints, start.about, start.of(checkpoints), recipe.training.hang_after)
    trainer = make_trainer(recipe, arguments, backbone, one, collator, kept, data.questions, keeping)
    trainer.run()
    taken_off(trainer)
    history, dropped = trainer.state.log_history, train_set.dropped + eval_set.dropped
    return PassReport(one, report(backbone), history, trainer.seconds, dropped, train_set.shrunk + eval_set.shrunk)


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
    keeping: Keeping,
) -> CotTrainer:
    """The trainer of one adapter, with what watches it."""
    callbacks: list[Any] = [RunLog(keeping.run / LOG_FILE, cot_format.name if cot_format.given is not None else None)]
    callbacks.append(NoInputGradients())
    callbacks.append(LivenessCheck(backbone, any(sample.images for sample in data[0].samples)))
    if recipe.training.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(recipe.training.early_stopping_patience))
    asked = questions[: recipe.training.eval_generations]
    options = {"args": arguments, "data_collator": collator, "callbacks": callbacks}
    trainer = CotTrainer(backbone, cot_format, recipe, data, asked, keeping, **options)
    if arguments.deepspeed:
        trainer.add_callback(EngineCheck(trainer, arguments.deepspeed))
    trainer.remove_callback(PrinterCallback)
    return trainer
