"""Parameter-efficient fine-tuning of vision-language models that reason in named stages.

One line, read left to right:

    recipe → data → backbone → validation → adapter → training → checkpoint → merge → engine → search → evaluation → serving

`recipe` says what to do; `formats` what the reasoning looks like; `data` makes samples and masks; `backbones` load a
base; `validation` says what is wrong with the rows; `adapters` attach LoRA by part; `training` runs TRL's trainer with
losses by stage; `checkpoints` are folders; `merging` writes one model and proves it, `cards` tell of it; `engines` run a model
for a `search`; `evaluation` says what it is worth, `serving` answers for many, and `planning`, before anything is loaded, what
it will take. `annotation` has a teacher write the reasoning that rows lack, and `publishing` puts what was made on the hub.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_cot.annotation.rows import Selection
    from lora_cot.annotation.run import annotate
    from lora_cot.checkpoints.opening import open_model
    from lora_cot.engines.opening import Server, open_remote
    from lora_cot.engines.teacher import Teacher
    from lora_cot.errors import LoraCotError
    from lora_cot.evaluation.after import train
    from lora_cot.evaluation.ask import ask
    from lora_cot.evaluation.calibration import calibrate
    from lora_cot.evaluation.comparing import compare
    from lora_cot.evaluation.predictions import score
    from lora_cot.evaluation.run import evaluate
    from lora_cot.merging.merge import merge
    from lora_cot.planning.plan import plan
    from lora_cot.publishing.push import push
    from lora_cot.recipe.load import load_recipe
    from lora_cot.serving.limits import Limits
    from lora_cot.serving.run import serve
    from lora_cot.validation.run import validate

__version__ = "0.1.0"
__all__ = [
    "Limits",
    "LoraCotError",
    "Selection",
    "Server",
    "Teacher",
    "annotate",
    "ask",
    "calibrate",
    "compare",
    "evaluate",
    "load_recipe",
    "merge",
    "open_model",
    "open_remote",
    "plan",
    "push",
    "score",
    "serve",
    "train",
    "validate",
]

_HOMES = {
    "Limits": "serving.limits",
    "LoraCotError": "errors",
    "Selection": "annotation.rows",
    "Server": "engines.opening",
    "Teacher": "engines.teacher",
    "annotate": "annotation.run",
    "ask": "evaluation.ask",
    "calibrate": "evaluation.calibration",
    "compare": "evaluation.comparing",
    "evaluate": "evaluation.run",
    "load_recipe": "recipe.load",
    "merge": "merging.merge",
    "open_model": "checkpoints.opening",
    "open_remote": "engines.opening",
    "plan": "planning.plan",
    "push": "publishing.push",
    "score": "evaluation.predictions",
    "serve": "serving.run",
    "train": "evaluation.after",
    "validate": "validation.run",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that `import lora_cot` needs no torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"lora_cot.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lora_cot' has no attribute '{name}'")
