"""train.py with something that goes wrong at a moment of one's choice, told by the environment.

driver.py RECIPE [key=value …], with HARM `kill`, `hang`, `term`, `nan` or `full`: it comes to rank HARM_RANK, or to all,
before its batch HARM_BATCH, counted from 0.
"""

import os
import signal
import sys
import time

import torch.distributed as dist

from lora_cot.cli import main
from lora_cot.training import trainer
from lora_cot.training.trainer import CotTrainer

harm, harmed = os.environ.get("HARM"), os.environ.get("HARM_RANK")
real, seen, stage_loss = CotTrainer.training_step, [], trainer.stage_loss


def step(self, *given, **more):
    """As it is, but for one batch."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    if harm and len(seen) == int(os.environ["HARM_BATCH"]) and harmed in (None, str(rank)):
        if harm == "hang":
            time.sleep(3600)
        if harm == "full":  # from the next checkpoint on, where its weights or its optimizer are written
            name = os.environ["HARM_WHERE"]
            setattr(CotTrainer, name, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        elif harm == "nan":
            trainer.stage_loss = lambda *given: stage_loss(*given) * float("nan")
        else:
            os.kill(os.getpid(), signal.SIGKILL if harm == "kill" else signal.SIGTERM)
    seen.append(0)
    return real(self, *given, **more)


CotTrainer.training_step = step
sys.argv.insert(1, "train")
main()
