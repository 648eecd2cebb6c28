"""A recipe from its first step to its last: trained, then measured, and gone on with where it was stopped."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from lora_cot.checkpoints.folders import is_finished, run_folder
from lora_cot.evaluation.run import check_questions, evaluate
from lora_cot.recipe import Recipe
from lora_cot.training.run import train as train_alone

REPORT, ANSWERS = "evaluation.json", "evaluation.jsonl"


def train(recipe: Recipe, root: Path = Path("runs")) -> Path:
    """Run a recipe; where it says so, answer its benchmark's questions freely afterwards. Returns the run's folder.

    Args:
        recipe: what to train, and what to measure it on. A finished run of it that was not measured yet is not trained
            again.
        root: the run's folder is made in here. It is left with evaluation.json, and evaluation.jsonl with each answer.

    Raises:
        RunError, DataError, BackboneError, AdapterError, TrainingError: see `training.run.train` and `evaluate`.
    """
    folder = run_folder(recipe, root)
    if recipe.evaluation.after_training:
        check_questions(recipe)
    measured = not recipe.evaluation.after_training or (folder / REPORT).exists()
    if measured or not is_finished(folder, recipe):
        train_alone(recipe, root)
    if recipe.evaluation.after_training and PartialState(cpu=not torch.accelerator.is_available()).is_main_process:
        gc.collect()  # the trained model, before it is loaded once more
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        report = evaluate(str(folder), output=folder / ANSWERS)
        text = json.dumps(report.to_json(), ensure_ascii=False, indent=2)
        staged = folder / f"{REPORT}.tmp"
        staged.write_text(text + "\n", encoding="utf-8")
        staged.rename(folder / REPORT)
        rows = [f"{name}  {value}" for name, value in report.summary.lines()]
        print(f"{report.benchmark} {report.split}", *rows, sep="\n", file=sys.stderr)
    return folder
