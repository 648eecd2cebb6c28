"""A recipe's training section to TRL's SFTConfig."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lora_cot.errors import Problem, RecipeError
from lora_cot.recipe import Recipe


def sft_config(recipe: Recipe, folder: Path) -> Any:
    """The SFTConfig of a run; what the recipe leaves open is chosen for the machine.

    Args:
        recipe: its training section holds SFTConfig's own keys.
        folder: the run's folder.

    Raises:
        RecipeError: values that contradict each other, in the library's words.
    """
    import torch
    from trl import SFTConfig

    cuda = torch.cuda.is_available()
    keys: dict[str, Any] = {
        "bf16": cuda and torch.cuda.is_bf16_supported(),
        "report_to": "none",
        "save_total_limit": 2,
        "dataloader_pin_memory": cuda,
        "disable_tqdm": not sys.stderr.isatty(),
        "seed": 0,
        **recipe.training.library,
        "output_dir": str(folder / "checkpoints"),
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "label_names": ["labels"],
        "max_length": None,  # the collator refuses what is longer; TRL's cut could go through an image or an answer
    }
    if keys.get("fp16"):
        keys["bf16"] = False
    best = keys.get("metric_for_best_model")
    if best is not None and keys.get("greater_is_better") is None:
        keys["greater_is_better"] = not best.endswith("loss")
    problems = _contradictions(recipe, keys)
    try:
        config = SFTConfig(**keys)
    except (ValueError, TypeError, RuntimeError) as error:
        problems.append(Problem("training", " ".join(str(error).split())))
    if problems:
        raise RecipeError(problems)
    return config


def _contradictions(recipe: Recipe, keys: dict[str, Any]) -> list[Problem]:
    """What the libraries would only notice in the middle of a run."""
    problems = []
    evaluates = keys.get("eval_strategy", "no") != "no"
    if evaluates and not recipe.data.eval:
        problems.append(Problem("training.eval_strategy", "there is nothing to evaluate on", "name sources in data.eval"))
    if recipe.training.early_stopping_patience is not None:
        wanted = {"metric_for_best_model": "a metric, such as accuracy", "load_best_model_at_end": "true"}
        problems += [
            Problem("training.early_stopping_patience", f"needs training.{key}", f"set it to {what}")
            for key, what in wanted.items()
            if not keys.get(key)
        ]
    return problems
