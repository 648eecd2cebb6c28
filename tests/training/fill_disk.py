"""Train three steps; then write the last checkpoint again and again, on a disk that is full one call later each time.

Run with disk_full.c preloaded: fill_disk.py LIBRARY RECIPE ROOT. Prints JSON: how many writes failed, and what was found.
"""

import contextlib
import ctypes
import json
import sys
from pathlib import Path

from lora_cot.checkpoints import store
from lora_cot.errors import TrainingError
from lora_cot.recipe import load_recipe
from lora_cot.training.run import train
from lora_cot.training.trainer import CotTrainer

library = ctypes.CDLL(sys.argv[1])
root = Path(sys.argv[3]).resolve()
found = {"failed": 0, "wrong": [], "written": False, "places": []}
real = CotTrainer._save_checkpoint


def save(self, model, trial):
    """As it is until the third step; then it fails everywhere before it succeeds."""
    if self.state.global_step < 3:
        return real(self, model, trial)
    checkpoints = Path(self.args.output_dir)
    for number in range(1000):
        told = None
        library.disk_full_after(str(checkpoints.resolve()).encode(), number)
        try:
            with contextlib.redirect_stderr(None):
                real(self, model, trial)
            found["written"] = True
        except TrainingError as error:
            found["failed"] += 1
            found["places"].append(str(error).split(" failed")[0].split(" · ")[-1])
            told = str(error)
        finally:
            library.disk_full_after(b"", -1)
        left = [path.name for path in checkpoints.iterdir() if path.name.startswith(".")]
        good, problems = store.newest_good(checkpoints)
        kept = 0 if good is None else good.step  # 3 only if it failed after it was in its place
        if problems or kept not in (2, 3) or (found["written"] and kept != 3):
            found["wrong"].append(f"{number}: {good} {problems}")
        if told is not None and f"the checkpoint of step {kept} is kept" not in told:
            found["wrong"].append(f"{number}: {kept} is kept, but: {told}")
        found["wrong"] += [f"{number}: left {left}"] if left else []
        if found["written"]:
            return None
    return None


CotTrainer._save_checkpoint = save
train(load_recipe(sys.argv[2]), root)
print(json.dumps(found))
