"""A recipe from its first step to its last: trained, then measured, and gone on with where it was stopped."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from lora_cot.cards.card import add_evaluation
from lora_cot.checkpoints.folders import WRITTEN, is_finished, run_folder
from lora_cot.checkpoints.store import replace_text
from lora_cot.evaluation.comparing import ANSWERS
from lora_cot.evaluation.run import check_questions, evaluate
from lora_cot.recipe import Recipe
from lora_cot.training.run import train as train_alone

REPORT = "evaluation.json"


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
        told, search = recipe.evaluation, recipe.search.model_dump()  # as they are now, whatever the run was trained with
        how: dict[str, Any] = {"split": told.split, "limit": told.limit, "data": told.data, "search": search}
        report = evaluate(str(folder), told.benchmark, output=folder / ANSWERS, **how)
        _keep_written(recipe, folder, report.split)
        add_evaluation(folder / "adapter", report.to_json())  # before what says that it was measured
        replace_text(folder / REPORT, json.dumps(report.to_json(), ensure_ascii=False, indent=2) + "\n")
        rows = [f"{name}  {value}" for name, value in report.summary.lines()]
        print(f"{report.benchmark} {report.split}", *rows, sep="\n", file=sys.stderr)
    return folder


def _keep_written(recipe: Recipe, folder: Path, split: str) -> None:
    """What the earlier passes of a split format wrote for the benchmark's questions, beside what they wrote for the others."""
    rows = [json.loads(line) for line in (folder / ANSWERS).read_text(encoding="utf-8").splitlines()]
    for one in recipe.format.build().passes[:-1]:
        (stage,) = one.stages
        texts = [{"id": row["id"], "output": row["stages"].get(stage.name, "")} for row in rows]
        place = folder / WRITTEN / one.name / f"{split}.jsonl"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
