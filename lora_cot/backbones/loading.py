"""From a recipe's model section to a `Backbone`: the one place that loads a base."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lora_cot.backbones import FAMILIES
from lora_cot.backbones.base import Backbone, Family
from lora_cot.backbones.zero import splits_on_load
from lora_cot.data.lengths import LengthLimit
from lora_cot.errors import BackboneError, Problem
from lora_cot.formats import CotFormat
from lora_cot.hub import cached_file, checkpoint_file, quietly
from lora_cot.recipe import Recipe
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import QuantizationSection

VISION_KEYS = ("vision_features", "vision_encoder", "vision_revision", "vision_training", "diffusion")
"""Of a recipe, for a base without eyes of its own."""


def resolve_base(base: str, weights: bool = True) -> str:
    """Folder or hub id of a base; a miniature is built here if it is nowhere yet, with its weights or without."""
    if base.startswith("mini/"):
        from lora_cot.backbones.mini.build import locate

        return str(locate(base.removeprefix("mini/"), weights))
    return base


def base_of(model: ModelSection, weights: bool = True) -> str:
    """Folder or hub id of all that a section's base is made of: see `resolve_base`; a T5 that is to be trained with
    what it sees by is joined with that.

    Raises:
        BackboneError: there is no such base, or it cannot be joined.
    """
    base = resolve_base(model.base, weights)
    learns, tunes = model.vision_features == "diffusion", model.vision_training in ("full", "lora")
    kind = _config(base, model.revision).get("model_type") if learns or tunes else None
    if learns and kind == "t5":
        from lora_cot.backbones.joined_diffusion import diffusion_joining as joining
    elif tunes and kind in ("t5", "t5_vision"):
        from lora_cot.backbones.t5_tuned import vision_joining as joining
    else:
        return base
    from lora_cot.backbones.joined import join

    return str(join(base, model.revision, joining(base, model, weights), weights))


def family_of(base: str, revision: str | None = None) -> Family:
    """The family of a checkpoint, by the `model_type` of its config.json.

    Raises:
        BackboneError: no such checkpoint, or not a vision-language model of ours.
    """
    model_type = _config(base, revision).get("model_type", "")
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    known = ", ".join(kind for family in FAMILIES.values() for kind in family.model_types)
    what = f"a model of type '{model_type}' is not a vision-language model this package knows"
    raise BackboneError(Problem(f"model.base {base}", what, f"allowed: {known}"))


def family_to_train(base: str, revision: str | None = None) -> Family:
    """The family of a checkpoint that is to be trained.

    Raises:
        BackboneError: as `family_of`; its family is for inference only.
    """
    if not (family := family_of(base, revision)).inference_only:
        return family
    known = ", ".join(kind for family in FAMILIES.values() if not family.inference_only for kind in family.model_types)
    what = f"{family.name} is here for inference only: it can be asked, searched, evaluated and served, not trained"
    raise BackboneError(Problem(f"model.base {base}", what, f"allowed: {known}"))


def _config(base: str, revision: str | None) -> dict[str, Any]:
    return json.loads(checkpoint_file("model.base", base, "config.json", revision).read_text(encoding="utf-8"))


def limit_of(recipe: Recipe, family: Family, processor: Any, one: CotFormat) -> LengthLimit:
    """How a recipe's samples are encoded in one pass of its format, and how long they may be."""
    training = recipe.training
    max_length = training.library.get("max_length")
    encoder = family.encoder(processor, one)
    return LengthLimit(encoder, family.image_tokens, max_length, training.long_samples, recipe.data.max_pixels)


def load_backbone(model: ModelSection, quantization: QuantizationSection | None = None) -> Backbone:
    """A base with its processor, quantised as the recipe says, on the GPU if there is one.

    Raises:
        BackboneError: the base is missing, of another kind, or was not quantised as asked.
    """
    import torch
    import transformers

    from lora_cot.backbones.quantization import bits_and_bytes, check_quantized, keep_differentiable

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    base = base_of(model)
    family = family_of(base, model.revision)
    _check_vision_keys(model, family)
    dtype = choose_dtype(model.dtype, base, model.revision, family, quantized=quantization is not None)
    options: dict[str, Any] = {"dtype": dtype, "revision": model.revision, "config": family.load_config(base, model)}
    if model.attn_implementation:
        options["attn_implementation"] = model.attn_implementation
    if torch.cuda.is_available() and not splits_on_load():
        options["device_map"] = {"": torch.cuda.current_device()}
    if quantization is not None:
        options["quantization_config"] = bits_and_bytes(quantization, family, dtype)
    loaded = _load(base, options, family, model).eval()
    if not splits_on_load():  # DeepSpeed has one precision for all
        for module in family.new_modules(loaded).values():
            module.float()  # transformers makes what a checkpoint lacks in the precision of the rest
    check_quantized(loaded, family, quantization)
    keep_differentiable(loaded)
    return Backbone(family, loaded, family.load_processor(base, model), model.base, model.revision)


def _load(base: str, options: dict[str, Any], family: Family, model: ModelSection) -> Any:
    from transformers import AutoModelForImageTextToText

    quiet: Any = quietly() if family.is_encoder_decoder else nullcontext()  # of a plain T5 the fusion is always missing
    try:
        with quiet:
            made: Any = AutoModelForImageTextToText.from_pretrained(base, output_loading_info=True, **options)
    except (ValueError, ImportError) as error:
        if model.attn_implementation is None:
            raise
        what = " ".join(str(error).split())[:300]
        raise BackboneError(Problem("model.attn_implementation", what, "leave it out, or set it to sdpa")) from None
    loaded, info = made
    new = tuple(f"{family.parts[part]}." for part in family.never_quantized)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(new))
    if missing and family.is_encoder_decoder:
        what = f"the checkpoint lacks {len(missing)} weights, {missing[0]} among them"
        raise BackboneError(Problem(f"model.base {model.base}", what, "download it again, or name another checkpoint"))
    return loaded


def _check_vision_keys(model: ModelSection, family: Family) -> None:
    """See that keys of vision features are for a base that takes some."""
    if family.is_encoder_decoder:
        return
    given = [key for key in VISION_KEYS if getattr(model, key) is not None]
    if given:
        what = f"a {family.name} model has a vision encoder of its own"
        raise BackboneError([Problem(f"model.{key}", what, "take it out: it is for a T5") for key in given])


def load_processor(model: ModelSection) -> tuple[Family, Any]:
    """Family and processor of a base that is to be trained; no weights are loaded.

    Raises:
        BackboneError: no such base, none that can be trained, or its processor cannot be loaded.
    """
    base = base_of(model, weights=False)
    family = family_to_train(base, model.revision)
    _check_vision_keys(model, family)
    try:
        return family, family.load_processor(base, model)
    except (OSError, ValueError, ImportError) as error:
        what = f"its processor cannot be loaded: {' '.join(str(error).split())[:200]}"
        raise BackboneError(Problem(f"model.base {model.base}", what, "check its files")) from None


def save_processor(backbone: Backbone, folder: Path) -> None:
    """The processor, with those of the base's own files that it was made without: those of its video half."""
    backbone.processor.save_pretrained(folder)
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (found := cached_file(resolve_base(backbone.base), name, backbone.revision)) and not (folder / name).exists():
            shutil.copyfile(found, folder / name)


def choose_dtype(name: str, base: str, revision: str | None, family: Family, quantized: bool) -> Any:
    """The precision of what is not quantised: as asked, else the checkpoint's, else what this GPU can do of it.

    A quantised base computes in it whatever autocast says: gradients of a checkpoint saved in float16 would vanish, so
    it is bfloat16 wherever there is bfloat16.

    Raises:
        BackboneError: the family cannot be computed in it.
    """
    import torch

    remedy = "set model.dtype to bfloat16 or float32"
    if name == "auto":
        config = _config(base, revision)
        name = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype") or "float32"
        half = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
        if name == "bfloat16" and half:
            name, remedy = "float16", "this GPU has no bfloat16: set model.dtype: float32, or use another base"
        elif name == "float16" and (family.no_fp16 or quantized) and not half:
            name = "bfloat16"
    if name == "float16" and family.no_fp16:
        raise BackboneError(Problem("model.dtype", f"a {family.name} model breaks in float16: {family.no_fp16}", remedy))
    return getattr(torch, name)
