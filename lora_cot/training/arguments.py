"""A recipe's training section to TRL's SFTConfig."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from lora_cot.backbones import Family
from lora_cot.errors import Problem, RecipeError
from lora_cot.formats import CotFormat
from lora_cot.recipe import Recipe
from lora_cot.training.sharding import PATIENCE
from lora_cot.training.sharding_limits import deepspeed_keys, mismatches


def sft_config(recipe: Recipe, folder: Path, family: Family, cot_format: CotFormat) -> Any:
    """The SFTConfig of a run, or of one pass of it; what the recipe leaves open is chosen for the machine.

    Args:
        recipe: its training section holds SFTConfig's own keys.
        folder: where checkpoints go.
        family: of the base; says whether float16 will do.
        cot_format: the format, or one pass of it.

    Raises:
        RecipeError: values that contradict each other or the base, in the library's words where it has any.
    """
    from trl import SFTConfig

    keys = _keys(recipe, folder, family)
    sharded, problems = deepspeed_keys(recipe, family)
    keys |= sharded
    keys |= _best(keys, cot_format)
    problems += [*_contradictions(recipe, keys), *_impossible(recipe, keys, family)]
    try:
        config = SFTConfig(**keys)
        problems += mismatches(config)
    except (ValueError, TypeError, RuntimeError) as error:
        problems.append(Problem("training", " ".join(str(error).split())))
    if problems:
        raise RecipeError(problems)
    return config


def _keys(recipe: Recipe, folder: Path, family: Family) -> dict[str, Any]:
    """SFTConfig's keys: what suits the machine, over it the recipe's own, and over both what every run must have."""
    import torch

    cuda = torch.cuda.is_available()
    bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    chosen = recipe.training.library
    keys: dict[str, Any] = {
        "bf16": bf16,
        "fp16": cuda and not bf16 and not family.no_fp16,
        "report_to": "none",
        "save_total_limit": 2,
        "ddp_timeout": PATIENCE,
        "dataloader_pin_memory": cuda,
        "dataloader_num_workers": min(4, (os.cpu_count() or 1) // 2) if cuda else 0,
        "use_cpu": not torch.accelerator.is_available(),
        "disable_tqdm": not sys.stderr.isatty(),
        "seed": 0,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        **chosen,
        "output_dir": str(folder),
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "label_names": ["labels"],
        "restore_callback_states_from_checkpoint": True,
        "logging_nan_inf_filter": False,
        "max_length": None,  # the collator sees to it; TRL's cut could go through an image or an answer
    }
    if chosen.get("fp16"):
        keys["bf16"] = bool(chosen.get("bf16"))
    elif chosen.get("bf16"):
        keys["fp16"] = False
    return keys


def _best(keys: dict[str, Any], cot_format: CotFormat) -> dict[str, Any]:
    """The metric that tells which checkpoint is best, if the recipe names one, and whether more of it is better."""
    best = keys.get("metric_for_best_model")
    if best is None:
        return {}
    if best.removeprefix("eval_") == "accuracy" and not any(stage.is_answer for stage in cot_format.stages):
        best = "loss"  # a pass without the answer has no accuracy
    greater = keys.get("greater_is_better")
    return {"metric_for_best_model": best, "greater_is_better": not best.endswith("loss") if greater is None else greater}


def _contradictions(recipe: Recipe, keys: dict[str, Any]) -> list[Problem]:
    """What the libraries would only notice in the middle of a run."""
    problems = []
    evaluates = keys.get("eval_strategy", "no") != "no"
    if evaluates and not recipe.data.eval and recipe.data.held_out is None:
        problems.append(
            Problem(
                "training.eval_strategy", "there is nothing to evaluate on", "name sources in data.eval, or set data.held_out"
            )
        )
    for key in ("split_batches", "dispatch_batches"):
        if (keys.get("accelerator_config") or {}).get(key):
            what = f"{key}: each rank makes its own batches, all of one kind at once"
            problems.append(Problem("training.accelerator_config", what, "take it out"))
    if recipe.training.early_stopping_patience is not None:
        wanted = {"metric_for_best_model": "a metric, such as accuracy", "load_best_model_at_end": "true"}
        problems += [
            Problem("training.early_stopping_patience", f"needs training.{key}", f"set it to {what}")
            for key, what in wanted.items()
            if not keys.get(key)
        ]
    return problems


def _impossible(recipe: Recipe, keys: dict[str, Any], family: Family) -> list[Problem]:
    """What this base or this machine cannot do."""
    import torch
    from accelerate import PartialState

    problems = []
    if recipe.model.dtype == "float16" and not keys["fp16"]:
        what = "float16 without training.fp16: its gradients would vanish unscaled"
        problems.append(Problem("model.dtype", what, "set training.fp16: true, or model.dtype to auto or bfloat16"))
    if torch.cuda.is_available() and torch.cuda.device_count() > 1 and PartialState().num_processes == 1:
        what = f"{torch.cuda.device_count()} GPUs are visible to one process"
        problems.append(Problem("training", what, "use `accelerate launch train.py RECIPE`, or set CUDA_VISIBLE_DEVICES=0"))
    if keys.get("fsdp") or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        what = "FSDP: answers, hand-on and adapters would be made of a rank's share of the weights"
        problems.append(Problem("training.fsdp", what, "use DeepSpeed: --deepspeed_config_file ds_configs/zero3.json"))
    if keys["fp16"] and family.no_fp16:
        what = f"a {family.name} model cannot be trained in float16: {family.no_fp16}"
        problems.append(Problem("training.fp16", what, "set training.bf16: true, or neither"))
    return problems
