"""What checkpoints cost: the time of a save against that of the steps between two.

    python benchmarks/checkpoints.py [--recipe recipes/mini/llava_four_stage.yaml] [--steps 100] [--repeats 3] [--json]

A run of the recipe saves every so many steps; each save is timed whole (writing, checksums, waiting for the disk, renaming,
removing the oldest), and so is every step.

cost: seconds of a save over seconds of the steps between two, the median over all; save_seconds, step_seconds: medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import command_line, tell  # beside this file


def timed(method: Any, times: list[float]) -> Any:
    """The same method; each call's seconds are noted."""

    def call(*given: Any, **more: Any) -> Any:
        begin = time.perf_counter()
        result = method(*given, **more)
        times.append(time.perf_counter() - begin)
        return result

    return call


def measure(recipe: str, steps: int, repeats: int) -> dict[str, Any]:
    """Train with saves, and time both."""
    from lora_cot.recipe import load_recipe
    from lora_cot.training.run import train
    from lora_cot.training.trainer import CotTrainer

    saves: list[float] = []
    batches: list[float] = []
    CotTrainer._save_checkpoint = timed(CotTrainer._save_checkpoint, saves)  # type: ignore[method-assign]
    CotTrainer.training_step = timed(CotTrainer.training_step, batches)  # type: ignore[method-assign]
    keys = {"max_steps": steps * repeats, "save_strategy": "steps", "save_steps": steps, "eval_strategy": "no"}
    overrides = [f"training.{key}={value}" for key, value in keys.items()]
    loaded = load_recipe(recipe, [*overrides, "training.load_best_model_at_end=false", "evaluation.after_training=false"])
    with tempfile.TemporaryDirectory() as folder:
        run = train(loaded, Path(folder))
        newest = run / "checkpoints" / f"checkpoint-{steps * repeats}"
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    step = statistics.median(batches) * loaded.training.library.get("gradient_accumulation_steps", 1)
    save = statistics.median(saves)
    return {
        "cost": save / (step * steps),
        "save_seconds": save,
        "step_seconds": step,
        "steps_between": steps,
        "megabytes": size / 1e6,
        "saves": saves,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = command_line(__doc__)
    parser.add_argument("--recipe", default="recipes/mini/llava_four_stage.yaml")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    found = measure(arguments.recipe, arguments.steps, arguments.repeats)
    tell(found, arguments.json)


if __name__ == "__main__":
    main()
