"""A real training process killed with SIGKILL at random moments and started again each time, until it was killed so often.

    python benchmarks/kill.py [--kills 100] [--json]

Each life is `python train.py RECIPE` on a tiny base. Once a run has a checkpoint, it is killed: half of the kills fall into
the writing of the next one, and half at any time after the process has taken the run's folder: while it looks through what
is there, loads, trains. The run must go on each time, from the newest checkpoint that was whole when it was killed or a newer
one; a run that came to its end is compared with one that nobody killed, byte for byte, and the next one begins.

kills: how often it was killed. resumed: after how many of them the run went on from such a step. equal: whether every
finished adapter was the uninterrupted one. Also: how many kills fell into a write, and how many runs came to their end.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import ROOT, command_line, tell  # beside this file

STEPS, EVERY = 60, 2
BEGUN = re.compile(r"goes on after step (\d+)|begins again|is trained already")
"""What a life says that goes on with a run."""
SPREAD = 6.0
"""Seconds over which kills are spread that do not wait for a write."""
TAGS = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")


def make_recipe(folder: Path) -> Path:
    """A recipe of a tiny random LLaVA, in NF4, with dropout: everything that could come out differently."""
    import yaml

    from lora_cot.backbones.mini.build import MiniSpec, random_base

    model, processor = random_base(MiniSpec("llava", (), width=64, layers=2))
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    training = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "save_steps": EVERY,
        "logging_steps": 5,
        "gradient_checkpointing": False,
        "eval_generations": 0,
    }
    values = {
        "name": "killed",
        "model": {"base": str(folder / "base"), "dtype": "float32"},
        "data": {"train": [{"source": "shapes", "limit": 50}]},
        "quantization": {"load_in_4bit": True},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
        "training": training,
        "search": {"stages": {name: {"max_new_tokens": 2} for name in TAGS}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@contextmanager
def training(folder: Path, recipe: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    """A training process of its own; its words go to a file."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), str(recipe), f"name={name}"]
    with (folder / "err").open("w") as err:
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=err, stdout=err, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def whole_steps(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints that are in their places."""
    return [int(path.name.rpartition("-")[2]) for path in checkpoints.glob("checkpoint-*") if path.name[-1].isdecimal()]


def kill_once(process: subprocess.Popen[str], checkpoints: Path, in_write: bool, rng: random.Random) -> str | None:
    """Wait for a moment and kill; where it fell, or nothing if the run ended before."""
    owner, told = checkpoints.parent / ".owner", checkpoints.parents[2] / "err"
    before = owner.stat().st_mtime_ns if owner.is_file() else 0  # of the life before, which could not take it away
    is_first = not whole_steps(checkpoints)
    while process.poll() is None and (not owner.is_file() or owner.stat().st_mtime_ns == before):
        time.sleep(0.01)
    while process.poll() is None and (is_first and not whole_steps(checkpoints)):
        time.sleep(0.01)
    if in_write:
        while process.poll() is None and not is_first and not BEGUN.search(told.read_text()):
            time.sleep(0.01)  # what the life before left half written is gone by then
        while process.poll() is None and not staged(checkpoints):
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.03)
    else:
        time.sleep(rng.random() * SPREAD)
    if process.poll() is not None:
        return None
    process.kill()
    process.wait()
    if (checkpoints.parent / "report.json").is_file():
        return None  # all was done, and the process was about to end
    return "write" if staged(checkpoints) else "elsewhere"


def staged(checkpoints: Path) -> bool:
    """Whether a checkpoint is being written, replaced or removed."""
    return any(checkpoints.glob(".*")) if checkpoints.is_dir() else False


def measure(kills: int, seed: int) -> dict[str, Any]:
    """Kill and start again."""
    rng = random.Random(seed)
    found: dict[str, Any] = {"kills": 0, "resumed": 0, "equal": True, "in_a_write": 0, "runs": 0, "problems": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe = make_recipe(folder)
        adapter = Path("adapter") / "adapter_model.safetensors"
        with training(folder, recipe, "whole") as process:
            process.wait()
        expected = (folder / "runs" / "whole" / adapter).read_bytes()
        run = folder / "runs" / "killed"
        waiting: list[int] = []  # newest steps at kills after which no life has told yet where it goes on
        while found["kills"] < kills or waiting:
            with training(folder, recipe, "killed") as process:
                enough = found["kills"] >= kills
                where = None if enough else kill_once(process, run / "checkpoints", rng.random() < 0.5, rng)
                process.wait()
            said = (folder / "err").read_text()
            if begun := BEGUN.search(said):
                step = STEPS if "trained already" in begun[0] else int(begun[1] or 0)
                found["resumed"] += sum(step >= newest for newest in waiting)
                if step < max(waiting, default=0):
                    found["problems"].append(f"step {max(waiting)} was whole, and it began after {step}: {said[-500:]}")
                waiting = []
            if where is not None:
                found["kills"] += 1
                found["in_a_write"] += where == "write"
                waiting.append(max(whole_steps(run / "checkpoints"), default=0))
                print(f"kill {found['kills']}: after step {waiting[-1]}, {where}", file=sys.stderr, flush=True)
                continue
            if waiting or not (run / "report.json").is_file():
                found["problems"].append(said[-1000:])
                break
            found["runs"] += 1
            found["equal"] &= (run / adapter).read_bytes() == expected
            shutil.rmtree(run)
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = command_line(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = measure(arguments.kills, arguments.seed)
    tell(found, arguments.json)
    if found["resumed"] != found["kills"] or not found["equal"] or not found["runs"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
