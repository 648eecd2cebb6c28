"""Decoding with looks at the image beside plain decoding: the same model, the same number of tokens, both sides in turn.

    python benchmarks/icot.py [--rounds 5] [--tokens 128] [--every 20] [--questions 1] [--json]

What a model writes is bent in the same way on both sides: letters, and a line break after each so-many tokens, at which one
side looks; several questions do so at different steps. So nothing is drawn on either side, which makes plain decoding a little
faster than it is. `time_ratio` is the largest one of the models with what a recipe gets by default (`attention`, the family's
own number of patches, 16 on Qwen2-VL and 36 on LLaVA, run through the model, three looks) in texts as long as ICoT's released
code writes; `no cap` looks at every line. The models' own figures hold the other selectors and insertions.
`look_tokens` is what a look costs in steps of plain decoding. Most of it is reading the patches, which costs more the more
there are, and nearly a step each where steps are bound by arithmetic and not by memory (many rows, or a slow processor):
`patches_per_token` says how many were shown for each token that was written.

Memory: `memory_growth` is how much larger the largest tensor is that watching a layer's attention makes with a prompt of about
twice the length, over how much longer the prompt is. 1 is linear in the length; a map of all tokens to all would bring 2.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from measuring import command_line, device, tell  # beside this file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_cot.backbones import FAMILIES, Backbone
from lora_cot.backbones.mini import llava
from lora_cot.backbones.mini.build import MiniSpec, random_base
from lora_cot.data.images import open_image
from lora_cot.data.shapes import make_sample
from lora_cot.engines import batch as batch_of_rows
from lora_cot.engines.attention import Watch
from lora_cot.engines.base import Ask
from lora_cot.engines.interleave import Interleave, Looking
from lora_cot.engines.local import LocalEngine
from lora_cot.formats import FORMATS
from lora_cot.search.selectors import at_random, attention
from lora_cot.types import Exchange, Sample

SIDES: dict[str, dict[str, Any]] = {
    "attention": {"select": attention},
    "attention, kv_copy": {"select": attention, "insert": "kv_copy"},
    "random": {"select": at_random, "is_watched": False},
    "attention, no cap": {"select": attention, "cap": None},
}
SIDE = 448
"""Pixels of a side of each image: 16 by 16 patches."""
QUESTION = "Look at the picture. Which shape is at the top left, and how many others have its colour?"


def main() -> None:
    """Time all sides, print the ratios."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="the median of so many rounds counts for each side")
    parser.add_argument("--tokens", type=int, default=128, help="of each text")
    parser.add_argument("--every", type=int, default=20, help="tokens between two looks")
    parser.add_argument("--questions", type=int, default=1, help="answered together")
    parser.add_argument("--width", type=int, default=1024, help="of the models")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=["llava", "qwen2_vl"])
    options = parser.parse_args()
    models: dict[str, Any] = {}
    for kind in options.models:
        models[kind] = measured(engine_of(kind, options), options)
        print(kind, json.dumps(models[kind]), file=sys.stderr, flush=True)
    ratio = max(found["time_ratio"]["attention"] for found in models.values())
    memory = max(found["memory_growth"] for found in models.values())
    report = {"time_ratio": ratio, "memory_growth": memory, "device": device(), "threads": torch.get_num_threads()}
    tell({**report, "models": models} if options.json else report, options.json)


def engine_of(kind: str, options: argparse.Namespace) -> LocalEngine:
    """A random model of a size at which its layers take most of a step."""
    llava.IMAGE_SIZE = SIDE
    model, processor = random_base(MiniSpec(kind, (), width=options.width, layers=options.layers))
    family = next(one for one in FAMILIES.values() if kind in one.model_types)
    return LocalEngine(Backbone(family, model.eval(), processor, kind), FORMATS["direct"])


def samples(count: int, words: int = 0) -> list[Sample]:
    """Questions with images, each with so many words more."""
    found = []
    for number in range(count):
        image = open_image(make_sample(number, "test", 0).images[0]).resize((SIDE, SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        found.append(Sample(f"q{number}", (Exchange(QUESTION + " word" * words),), (buffer.getvalue(),)))
    return found


class Bent:
    """Draws of all rows: a line break at each so-manieth step of a row, a letter at all others."""

    def __init__(self, engine: LocalEngine, every: int):
        encode = engine.texts.tokenizer
        self._letter, self._break = (encode(text, add_special_tokens=False)["input_ids"][-1] for text in ("a", "\n"))
        self._every = every
        self._steps: dict[Any, int] = {}

    def __call__(self, logits: torch.Tensor, _samplings: Any, draws: Sequence[Any]) -> tuple[list[int], list[float]]:
        """See `sampling.draw`."""
        tokens = []
        for one in draws:  # each row has its own, and begins a few steps nearer to its first line's end than the last
            self._steps[one] = self._steps.get(one, 7 * len(self._steps)) + 1
            tokens.append(self._letter if self._steps[one] % self._every else self._break)
        return tokens, [-1.0] * len(logits)


def seconds(engine: LocalEngine, how: Interleave | None, options: argparse.Namespace, words: int = 0) -> tuple[float, int]:
    """Of decoding alone, and the looks of each text."""
    asked = samples(options.questions, words)
    if how is not None:
        how = engine.see(how)
    states = engine.start(asked)
    looks = [how and Looking(how, sample) for sample in asked]
    asks = [Ask(state, ["a"], options.tokens, look=look) for state, look in zip(states, looks, strict=True)]
    batch_of_rows.draw = Bent(engine, options.every)  # type: ignore[assignment]
    begin = time.perf_counter()
    found = engine.extend(asks)
    taken = time.perf_counter() - begin
    assert all(candidate.tokens == options.tokens for (candidate,) in found)
    return taken, len(found[0][0].looks)


def measured(engine: LocalEngine, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of the medians, and each side's own seconds."""
    sides = {name: Interleave(name, **keys) for name, keys in SIDES.items()}
    times: dict[str, list[float]] = {name: [] for name in ("plain", *sides)}
    looks: dict[str, int] = {}
    for _ in range(options.rounds):
        for name in times:
            taken, looks[name] = seconds(engine, sides.get(name), options)
            times[name].append(taken)
    median = {name: statistics.median(found) for name, found in times.items()}
    step, shown = median["plain"] / options.tokens, engine.see(sides["attention"]).n
    return {
        "time_ratio": {name: round(median[name] / median["plain"], 4) for name in sides},
        "look_tokens": {name: round((median[name] - median["plain"]) / looks[name] / step, 2) for name in sides},
        "looks": {name: looks[name] for name in sides},
        "patches_per_token": {name: round(looks[name] * shown / options.tokens, 3) for name in sides},
        "memory_growth": memory_growth(engine, sides["attention"], options),
        "seconds": {name: [round(min(found), 4), round(max(found), 4)] for name, found in times.items()},
    }


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what it made."""
        made = function(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(one.numel() for one in tree_leaves(made) if isinstance(one, torch.Tensor))])
        return made


def memory_growth(engine: LocalEngine, how: Interleave, options: argparse.Namespace) -> float:
    """See the module's text."""
    found, see = [], Watch.see

    def noted(watch: Watch, module: Any, query: torch.Tensor, key: torch.Tensor, *rest: Any) -> None:
        with Largest() as largest:
            see(watch, module, query, key, *rest)
        found.append((largest.elements, key.shape[2]))

    Watch.see = noted  # type: ignore[method-assign]
    try:
        words = engine.encode(samples(1)).lengths[0]
        for more in (0, words):
            seconds(engine, how, options, more)
    finally:
        Watch.see = see  # type: ignore[method-assign]
    (small, short), (large, long) = found[0], found[-1]
    return round(large / small / (long / short), 3)


if __name__ == "__main__":
    main()
