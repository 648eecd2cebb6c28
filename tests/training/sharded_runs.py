"""Several runs in the same processes, one after another: launched by tests, since starting processes costs the most.

Takes a JSON file of lists [recipe's file, overrides …] and writes beside it, for each, what it ran on or how it failed.
"""

import faulthandler
import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path

from accelerate import PartialState

from lora_cot.errors import LoraCotError
from lora_cot.recipe.load import load_recipe
from lora_cot.training import run

HANGS = 100
"""Seconds after which a run is taken to hang."""


def watched(recipe):
    """Train, and tell of the engine of each pass, seen from outside."""
    engines, real = [], run.taken_off

    def spy(trainer):
        engine = trainer.model_wrapped
        stage = engine.zero_optimization_stage() if hasattr(engine, "zero_optimization_stage") else None
        split = sum(hasattr(p, "ds_id") for p in engine.parameters())
        engines.append([type(engine).__name__, stage, split > 0])
        real(trainer)

    run.taken_off = spy
    try:
        folder = run.train(recipe)
        return {"folder": str(folder), "engines": engines}
    except Exception as error:
        if not isinstance(error, LoraCotError):
            traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:2000], "engines": engines}
    finally:
        run.taken_off = real


def compile_once():
    """What ranks talk through under DeepSpeed, which compiles it where it is used first: minutes that look like a hang."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.comm.torch import build_shm_op

    build_shm_op()
    del os.environ["DS_ACCELERATOR"]


if __name__ == "__main__":
    jobs = Path(sys.argv[1])
    done = []
    if "RANK" in os.environ:
        compile_once()
    gc.collect()
    gc.freeze()  # modules are no garbage, which each run looks for
    for path, *overrides in json.loads(jobs.read_text()):
        faulthandler.dump_traceback_later(HANGS, exit=True)
        print("==", overrides, file=sys.stderr, flush=True)
        begin = time.perf_counter()
        done.append(watched(load_recipe(path, overrides)) | {"seconds": round(time.perf_counter() - begin, 1)})
    if PartialState().is_main_process:
        jobs.with_suffix(".done").write_text(json.dumps(done))
