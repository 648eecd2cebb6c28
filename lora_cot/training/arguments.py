"""A recipe's training section to TRL's SFTConfig."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lora_cot.recipe import Recipe


def sft_config(recipe: Recipe, folder: Path) -> Any:
    """The SFTConfig of a run; what the recipe leaves open is chosen for the machine.

    Args:
        recipe: its training section holds SFTConfig's own keys.
        folder: the run's folder.
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
    return SFTConfig(**keys)
