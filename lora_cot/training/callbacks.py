"""What watches a run: the log file, a line now and then, and adapters that do not learn."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lora_cot.adapters.liveness import Liveness
from lora_cot.backbones import Backbone

LIVENESS_STEPS = 3
"""Optimizer steps after which every trained tensor must have had a gradient."""


class RunLog(TrainerCallback):
    """Every log entry as one JSON line; off a terminal also a line for people, with the time left."""

    def __init__(self, path: Path, pass_name: str | None = None):
        """
        Args:
            path: the file.
            pass_name: of a split format; written into each entry.
        """
        self._path, self._begin, self._first = path, time.perf_counter(), 0
        self._mark = {"pass": pass_name} if pass_name else {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The clock of the estimate starts here, and counts the steps of this start alone."""
        self._begin, self._first = time.perf_counter(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write one entry."""
        if not state.is_world_process_zero or not logs:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**self._mark, "step": state.global_step, **logs}) + "\n")
        if args.disable_tqdm:
            self._print(state, logs)

    def _print(self, state: Any, logs: dict[str, Any]) -> None:
        shown = {key: value for key, value in logs.items() if key.removeprefix("eval_").split("/")[0] in SHOWN}
        if not shown:
            return
        done, to_do = state.global_step - self._first, state.max_steps - state.global_step
        left = (time.perf_counter() - self._begin) / max(done, 1) * to_do
        values = "  ".join(f"{key} {value:.4g}" for key, value in shown.items() if isinstance(value, int | float))
        print(f"step {state.global_step}/{state.max_steps}  {values}  ({left:.0f} s left)", file=sys.stderr, flush=True)


SHOWN = ("loss", "accuracy", "format_validity", "tokens_per_second", "peak_memory_gb")


class NoInputGradients(TrainerCallback):
    """Keeps gradients out of frozen encoders where checkpointing is not reentrant.

    transformers lets the inputs of every tower require a gradient when it turns checkpointing on. Only the reentrant
    kind needs that; a frozen vision encoder would be recomputed and sent gradients through for nothing.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """After the trainer has turned checkpointing on."""
        if args.gradient_checkpointing and not (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            drop_input_gradients(model)


def drop_input_gradients(model: Any) -> None:
    """Undo `enable_input_require_grads`, however often it was called: its own way back forgets all calls but the last."""
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__name__", "") == "make_inputs_require_grads":
                del module._forward_hooks[key]


class LivenessCheck(TrainerCallback):
    """Stops a run whose adapters do not all learn.

    Raises (from `on_step_end`):
        TrainingError: see `Liveness.check`.
    """

    def __init__(self, backbone: Backbone, with_images: bool):
        """
        Args:
            backbone: with its adapters.
            with_images: whether any sample has an image. A batch without one gives the layers that see images no
                gradient: they are judged only after a batch that has some.
        """
        self._liveness: Liveness | None = Liveness(backbone.model)
        self._waits, self._begin = with_images, 0
        self._sees = backbone.family.sees
        self._hook = backbone.model.register_forward_pre_hook(self._saw_image, with_kwargs=True)

    def _saw_image(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        self._waits = self._waits and not (module.training and self._sees(inputs))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run that goes on was judged before; one that goes on before that is judged after as many steps of its own."""
        self._begin = state.global_step
        if self._begin >= LIVENESS_STEPS and self._liveness is not None:
            self._hook.remove()
            self._liveness.close()
            self._liveness = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Judge after a few steps, once."""
        enough = state.global_step - self._begin >= min(LIVENESS_STEPS, state.max_steps - self._begin)
        if self._liveness is not None and enough and not self._waits:
            self._hook.remove()
            self._liveness.check()
            self._liveness = None
