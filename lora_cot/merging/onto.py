"""A base, an adapter, and what the one is merged onto: made ready from a recipe, and written as a folder."""

from __future__ import annotations

import fnmatch
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lora_cot.backbones import Family
from lora_cot.backbones.loading import base_of, choose_dtype, family_of
from lora_cot.backbones.quantization import quantize_layers, quantized_layers
from lora_cot.checkpoints.layout import CONFIG
from lora_cot.checkpoints.store import replace_text
from lora_cot.errors import AdapterError, MergeError, Problem
from lora_cot.hub import quietly
from lora_cot.merging.arithmetic import FourBit
from lora_cot.merging.base import SMALL, base_folder, read_base
from lora_cot.merging.checkpoint import FLOATS
from lora_cot.merging.deltas import Adapter, read_adapter
from lora_cot.merging.plan import MergePlan, make_plan
from lora_cot.merging.stream import write_weights
from lora_cot.recipe import Recipe

Onto = Literal["full", "dequantized"]


@dataclass(frozen=True)
class Ready:
    """A merge that only has to be written."""

    onto: Onto
    plan: MergePlan
    family: Family
    four_bit: FourBit | None
    config: Any
    """The transformers configuration of the merged model."""
    dtype: str
    """Of its weights."""


def make_ready(recipe: Recipe, adapter: Path, onto: Onto) -> Ready:
    """What a merge will write; no weight is loaded.

    Args:
        recipe: of the run.
        adapter: its folder.
        onto: full: the base's own weights. dequantized: what the 4-bit form of exactly those layers stands for that the
            adapter was trained on in 4 bits, in the precision it was dequantised to in training.

    Raises:
        MergeError: the base was not quantised, or in 8 bits; the adapter holds values that are not finite.
        BackboneError, AdapterError: base or adapter cannot be read, or they do not fit each other.
    """
    section = recipe.model
    name = base_of(section)
    family = family_of(name, section.revision)
    folder = base_folder(name, section.revision)
    config = family.load_config(name, section)
    quantized: frozenset[str] = frozenset()
    four_bit = None
    if onto == "dequantized":
        four_bit = _four_bit(recipe, name, family)
        assert recipe.quantization is not None
        exchanged = _on_meta(config)
        quantize_layers(exchanged, family, recipe.quantization, four_bit.dtype)
        quantized = quantized_layers(exchanged)
    model = _on_meta(config)
    base = read_base(folder, model, family)
    placed = read_adapter(adapter, model)
    _check_looked_up(placed, family)
    plan = make_plan(base, placed, quantized)
    types = [step.dtype for output in plan.outputs for step in output.steps if step.file and step.dtype in FLOATS]
    dtype = str(FLOATS[max(set(types), key=types.count)]).removeprefix("torch.")
    return Ready(onto, plan, family, four_bit, config, dtype)


def _check_looked_up(adapter: Adapter, family: Family) -> None:
    """Raise if a low-rank change is of T5's `shared`, which is one weight with both embeddings and the head, and never called.

    Raises:
        AdapterError: it is; PEFT's model would be its base, and PEFT's merge would change all four.
    """
    change = adapter.changes.get("shared.weight")
    if family.is_encoder_decoder and change and change.low_rank:
        what = "it adapts `shared`, which T5 looks nothing up in: it does nothing, and merged it would change the head"
        remedy = "adapt encoder.embed_tokens, decoder.embed_tokens or lm_head"
        raise AdapterError(Problem(str(adapter.file.path.parent), what, remedy))


def _on_meta(config: Any) -> Any:
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"), quietly():
        return AutoModelForImageTextToText.from_config(config)


def _four_bit(recipe: Recipe, base: str, family: Family) -> FourBit:
    """How the base was quantised in training."""
    where, section = "--onto dequantized", recipe.quantization
    if section is None:
        raise MergeError(Problem(where, "this adapter was trained on a base that was not quantised", "take --onto full"))
    if not section.load_in_4bit:
        what = "8-bit layers round what they are given too: no 16-bit weights are what the adapter was trained on"
        raise MergeError(Problem(where, what, "take --onto full"))
    double = bool(section.library.get("bnb_4bit_use_double_quant", False))
    dtype = choose_dtype(recipe.model.dtype, base, recipe.model.revision, family, quantized=True)
    return FourBit(section.bnb_4bit_quant_type, double, dtype)


def write_model(ready: Ready, recipe: Recipe, folder: Path) -> dict[str, int]:
    """The merged model's folder: weights, configuration, and the base's own processor, tokenizer and licence.

    Returns:
        How many values of each changed tensor are other than what was merged onto.

    Raises:
        MergeError: a merged value is not finite, or not what PEFT's own merge makes of it.
        RunError: the disk is full.
    """
    changed = write_weights(ready.plan, folder, ready.four_bit)
    for path in sorted(ready.plan.base.iterdir()):
        if path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in SMALL):
            shutil.copyfile(path, folder / path.name)
    text = _config_text(ready)
    if text is not None:
        replace_text(folder / CONFIG, text)
    if ready.family.is_encoder_decoder:
        name = base_of(recipe.model)
        ready.family.save_whole(ready.family.load_processor(name, recipe.model), folder)
    return changed


def _config_text(ready: Ready) -> str | None:
    """What the merged model's configuration says otherwise than the base's own; None if that holds for it too."""
    values: dict[str, Any] = json.loads((ready.plan.base / CONFIG).read_text(encoding="utf-8"))
    changed = False
    settings = ("model_type", "diffusion", "vision_training")
    if any(getattr(ready.config, key, values.get(key)) != values.get(key) for key in settings):  # a T5 that was taught to see
        model = _on_meta(ready.config)
        values = json.loads(ready.config.to_json_string())
        values |= {"architectures": [type(model).__name__], "dtype": ready.dtype}
        changed = True
    if ready.plan.unties and not ready.family.is_encoder_decoder:  # T5 would also scale its output otherwise; it finds two
        values["tie_word_embeddings"] = False
        if isinstance(values.get("text_config"), dict):
            values["text_config"]["tie_word_embeddings"] = False
        changed = True
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n" if changed else None
