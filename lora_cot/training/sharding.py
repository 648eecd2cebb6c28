"""DeepSpeed ZeRO: where its configuration comes from, the processes it runs on, and proof that it is truly DeepSpeed.

Whether it comes as `training.deepspeed` or through `accelerate launch --use_deepspeed`, it ends up as SFTConfig's own
`deepspeed=`, the environment set so that Accelerate makes DeepSpeed's process group. A run that misses one of the two
looks like DeepSpeed and is plain DDP; so the engine is asserted when training begins.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from lora_cot.backbones import zero
from lora_cot.errors import Problem, RecipeError, TrainingError
from lora_cot.recipe import Recipe
from lora_cot.recipe.shipped import shipped
from lora_cot.training.console import show

PATIENCE = 12 * 3600
"""Seconds that a rank waits for the others, which may compute the features of all images, or write a long share of texts."""
FLAG = "ACCELERATE_USE_DEEPSPEED"
FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
STAGE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
ZERO = "zero_optimization"
FROM_RECIPE = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "zero_force_ds_cpu_optimizer": False,
}
"""What every configuration has unless it says otherwise: left out, DeepSpeed would take defaults of its own, no clipping
for one. Offloaded states of adapters are small: torch's own optimizer steps them, and nothing has to be compiled."""


def is_wanted(recipe: Recipe) -> bool:
    """Whether a run goes through DeepSpeed: its recipe says so, or what launched it."""
    return recipe.training.library.get("deepspeed") is not None or os.environ.get(FLAG, "").lower() == "true"


def read_config(recipe: Recipe) -> dict[str, Any]:
    """DeepSpeed's configuration, from the recipe or from what launched the run.

    Raises:
        RecipeError: it cannot be read or names no ZeRO stage, or both are there and differ.
    """
    ours = recipe.training.library.get("deepspeed")
    theirs = _launched() if os.environ.get(FLAG, "").lower() == "true" else None
    if ours is None and theirs is None:
        theirs = 2  # what Accelerate itself takes
    found = [
        _checked(where, _parsed(where, given))
        for where, given in (("training.deepspeed", ours), ("accelerate launch", theirs))
        if given is not None
    ]
    if len(found) > 1 and found[0] != found[1]:
        what = "accelerate was launched with another DeepSpeed configuration"
        raise RecipeError(Problem("training.deepspeed", what, "give it in one of the two places"))
    return found[0]


def _launched() -> str | int | None:
    """The file that `accelerate launch` was given, else the stage."""
    path, stage = os.environ.get(FILE, "none"), os.environ.get(STAGE)
    return path if path != "none" else int(stage) if stage else None


def _parsed(where: str, given: Any) -> Any:
    if isinstance(given, int):
        return _of_stage(given)
    if isinstance(given, Mapping):
        return dict(given)
    path = shipped(Path(given))
    if not path.is_file():
        raise RecipeError(Problem(where, f"no such file: {path}", "ds_configs/ has one for each stage"))
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(Problem(where, f"{path} is not JSON: {error}", "ds_configs/ has one for each stage")) from None


def _of_stage(stage: int) -> dict[str, Any]:
    """What `accelerate launch --use_deepspeed --zero_stage …` means, as a file would say it."""
    section: dict[str, Any] = {"stage": stage}
    for what in ("optimizer", "param"):
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what.upper()}_DEVICE", "none")
        if device != "none":
            section[f"offload_{what}"] = {"device": device}
    return {ZERO: section}


def _checked(where: str, config: Any) -> dict[str, Any]:
    section = config.get(ZERO) if isinstance(config, Mapping) else None
    if not isinstance(section, Mapping) or section.get("stage") not in (1, 2, 3):
        remedy = f'add "{ZERO}": {{"stage": 2}}, or take ds_configs/zero2.json'
        raise RecipeError(Problem(where, f"no {ZERO} of stage 1, 2 or 3 in it", remedy))
    problems = [
        Problem(where, f"'{key}' in it: the recipe is the only source of that", f"take it out, and set {instead}")
        for key, instead in (("optimizer", "training.optim"), ("scheduler", "training.lr_scheduler_type"))
        if key in config
    ]
    if problems:
        raise RecipeError(problems)
    return {**FROM_RECIPE, **config}


def stage_of(config: Mapping[str, Any]) -> int:
    """The ZeRO stage of a configuration."""
    return int(config[ZERO]["stage"])


def offloads(config: Mapping[str, Any]) -> bool:
    """Whether optimizer states or parameters are kept in the host's memory, or on its disks."""
    sections = [config[ZERO].get(key) or {} for key in ("offload_optimizer", "offload_param")]
    return any(section.get("device", "none") != "none" for section in sections)


@contextmanager
def processes(recipe: Recipe) -> Iterator[PartialState]:
    """The processes of a run, as Accelerate knows them; DeepSpeed's if the run is to go through it.

    Raises:
        RecipeError: DeepSpeed without a launcher, or not installed.
    """
    seconds = timedelta(seconds=float(recipe.training.library.get("ddp_timeout", PATIENCE)))
    wanted, cpu = is_wanted(recipe), not torch.accelerator.is_available()
    state: Any = PartialState._shared_state
    AcceleratorState._reset_state()
    if state and (state.get("distributed_type") is DistributedType.DEEPSPEED) != wanted:
        AcceleratorState._reset_state(reset_partial_state=True)  # of a run before in this process
    if not wanted:
        # Ranks on CPUs are only counted if it is told so; and it is here that the process group is made.
        yield PartialState(cpu=cpu, timeout=seconds)
        return
    _check_launched()
    kept = {name: os.environ.get(name) for name in (FLAG, "ACCELERATE_USE_CPU", "DS_ACCELERATOR")}
    os.environ[FLAG] = "true"
    if cpu:  # before deepspeed is imported, which else looks for an accelerator; Accelerate's own flag would mean DDP
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.pop("ACCELERATE_USE_CPU", None)
    try:
        yield PartialState(timeout=seconds, **({"backend": "gloo"} if cpu else {}))
    finally:
        _forget()
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _check_launched() -> None:
    if importlib.util.find_spec("deepspeed") is None:
        remedy = "pip install 'lora_cot[deepspeed]'"
        raise RecipeError(Problem("training.deepspeed", "DeepSpeed is not installed", remedy))
    if "LOCAL_RANK" not in os.environ:
        remedy = "use `accelerate launch --use_deepspeed --num_processes N train.py RECIPE`"
        raise RecipeError(Problem("training.deepspeed", "DeepSpeed needs a launcher, for a single process too", remedy))


def _forget() -> None:
    """What is loaded from now on is not split, even while an old configuration waits for the garbage collector."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


class EngineCheck(TrainerCallback):
    """Says what a run is shared by, and stops one that was to be DeepSpeed's and is not.

    Raises (from `on_train_begin`):
        TrainingError: the model is not wrapped in DeepSpeed's engine, or its stage is another one.
    """

    def __init__(self, trainer: Any, config: Mapping[str, Any]):
        """
        Args:
            trainer: it wraps the model before it tells callbacks of the beginning.
            config: DeepSpeed's configuration.
        """
        self._trainer, self._config = trainer, config

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The model is wrapped by now."""
        from deepspeed import DeepSpeedEngine

        engine, wanted = self._trainer.model_wrapped, stage_of(self._config)
        kind = self._trainer.accelerator.distributed_type
        is_engine = isinstance(engine, DeepSpeedEngine) and kind is DistributedType.DEEPSPEED
        got = engine.zero_optimization_stage() if is_engine else None
        if got != wanted:
            what = f"ZeRO-{got}" if is_engine else f"{type(engine).__name__} on {kind.value}, which looks like it and is not"
            raise TrainingError(
                Problem("training.deepspeed", f"asked for ZeRO-{wanted}, got {what}", "see docs/deepspeed.md, and tell us")
            )
        count = PartialState().num_processes
        moved = ", offload to the host" if offloads(self._config) else ""
        precision = str(self._trainer.args.hf_deepspeed_config.dtype()).removeprefix("torch.")
        show(f"{count} process{'es' * (count > 1)}, DeepSpeed ZeRO-{wanted}{moved}, computed in {precision}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Each step has its own gradients alone."""
        zero.forget_gradients(self._trainer.model_wrapped)


def taken_off(trainer: Any) -> None:
    """Let a trainer's model go, whose training is over: without the engine, and without its hooks."""
    if getattr(trainer, "is_deepspeed_enabled", False):
        zero.release(trainer.model_wrapped)
        AcceleratorState._reset_state()  # it has this engine's configuration; a later pass makes another
