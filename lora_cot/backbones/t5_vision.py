"""T5 with vision features (Multimodal-CoT, arXiv 2302.00923): T5, FLAN-T5, UnifiedQA, FLAN-Alpaca, and what became of them.

Traps:
- T5's vocabulary has no `<`, `{`, `}` or newline: stage tags are written in brackets, white space is single spaces.
- transformers keeps `wo` out of 4-bit layers, because of float16; and T5 casts what `wo` is given to the type that its
  weight is stored in, which must therefore be a floating one.
- The vision encoder is no part of the model: it is frozen, and what it makes of an image is computed once and kept.
- Nothing of it is served by vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import T5Config

from lora_cot.backbones.base import Family, Size
from lora_cot.backbones.t5_vision_model import T5VisionConfig
from lora_cot.backbones.vision_features import FOLDER, VisionFeatures
from lora_cot.data.labels import Encoded
from lora_cot.data.seq2seq import Seq2SeqEncoder
from lora_cot.errors import BackboneError, Problem
from lora_cot.recipe.model import ModelSection
from lora_cot.types import Image


@dataclass
class T5VisionProcessor:
    """The tokenizer, and what makes vision features of an image."""

    tokenizer: Any
    features: VisionFeatures | None

    def look(self, image: Image, max_pixels: int) -> dict[str, torch.Tensor]:
        """vision_features (P, D) of an image, if it is to be seen."""
        return {} if self.features is None else {"vision_features": self.features.of(image, max_pixels)}

    def save_pretrained(self, folder: Path) -> None:
        """The tokenizer alone: the model's configuration names the vision encoder."""
        self.tokenizer.save_pretrained(folder)


def load_config(base: str, section: ModelSection) -> T5VisionConfig:
    """A T5 checkpoint's configuration with the vision features that the recipe names, or that it was trained on.

    Raises:
        BackboneError: neither says which features, or they contradict each other.
    """
    values, _ = T5Config.get_config_dict(base, revision=section.revision)
    known, wanted = values.get("vision_features"), section.vision_features
    if known is None and wanted is None:
        what = "a T5 sees an image by its vision features, and none are named"
        remedy = "set it to vit, clip or diffusion, or to none for text alone"
        raise BackboneError(Problem("model.vision_features", what, remedy))
    if known is not None and (problems := other_features(section, known)):
        raise BackboneError(problems)
    named = [key for key in ("vision_encoder", "vision_revision") if getattr(section, key) is not None]
    if named and (known is not None or wanted == "none"):
        what = "this checkpoint has its own" if known is not None else "no features are to be made"
        raise BackboneError([Problem(f"model.{key}", what, "take it out") for key in named])
    if section.diffusion is not None:
        what = f"this checkpoint was trained with {known} features"
        raise BackboneError(Problem("model.diffusion", what, "take it out, or set model.vision_features: diffusion"))
    if known is None:
        values |= {"vision_features": wanted, **_encoder_keys(base, section)}
    elif wanted == "none":
        values["vision_features"] = "none"  # its fusion stays, and is given zeros
    values.pop("model_type", None)
    values.pop("architectures", None)
    return T5VisionConfig(**values)


def other_features(section: ModelSection, known: str) -> list[Problem]:
    """What is wrong where a recipe asks for other features than those that a checkpoint was trained with."""
    if section.vision_features in (None, "none", known):
        return []
    what = f"{section.vision_features}, but this checkpoint was trained with {known} features"
    return [Problem("model.vision_features", what, "leave it out, or name a plain T5 as model.base")]


def _encoder_keys(base: str, section: ModelSection) -> dict[str, Any]:
    if section.vision_features == "none":
        return {"image_width": 0, "image_patches": 0}
    features = VisionFeatures(str(section.vision_features), section.vision_encoder, section.vision_revision)
    patches, width = features.shape
    return {
        "vision_encoder": features.encoder,
        "vision_revision": features.revision,
        "image_patches": patches,
        "image_width": width,
    }


def load_processor(base: str, section: ModelSection) -> T5VisionProcessor:
    """The tokenizer of a checkpoint, with the features that its configuration names."""
    from transformers import AutoTokenizer

    config = load_config(base, section)
    tokenizer = AutoTokenizer.from_pretrained(base, revision=section.revision)
    if config.vision_features == "none":
        return T5VisionProcessor(tokenizer, None)
    return T5VisionProcessor(tokenizer, VisionFeatures(str(config.vision_features), *encoder_place(base, config)))


def encoder_place(base: str, config: T5VisionConfig) -> tuple[str, str | None]:
    """Folder or hub id of a checkpoint's vision encoder, and the revision of the latter."""
    own = Path(base) / FOLDER
    return (str(own), None) if own.is_dir() else (str(config.vision_encoder), config.vision_revision)


def new_parts(model: Any) -> tuple[str, ...]:
    """The fusion, unless all that it is given are zeros."""
    return () if model.config.vision_features == "none" else ("projector",)


def fill_features(processor: T5VisionProcessor, images: Sequence[Image], max_pixels: int) -> None:
    """Compute the features that are not kept yet."""
    if processor.features is not None:
        processor.features.fill(images, max_pixels)


def save_whole(processor: T5VisionProcessor, folder: Path) -> None:
    """A vision encoder that is a folder on this machine goes along; one of the hub is found again by its name."""
    if processor.features is not None:
        processor.features.save(folder)


def vision_inputs(processor: Any, rows: list[Encoded], text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """vision_features (B, P, D); zeros for a row without an image (Multimodal-CoT, section 5.1)."""
    if processor.features is None:
        return {}
    blank = torch.zeros(processor.features.shape)
    return {"vision_features": torch.stack([row.image_inputs.get("vision_features", blank).float() for row in rows])}


def no_tokens(processor: Any, sizes: Sequence[Size]) -> list[int]:
    """An image takes no room in the text."""
    return [0] * len(sizes)


T5_VISION = Family(
    name="t5_vision",
    model_types=("t5", "t5_vision"),
    parts={"projector": "encoder.fusion", "language_model": "", "lm_head": "lm_head"},
    image_inputs=vision_inputs,
    image_tokens=no_tokens,
    most_images=1,
    no_fp16="its activations overflow",
    tag_style="brackets",
    encoder=Seq2SeqEncoder,
    is_encoder_decoder=True,
    never_quantized=("projector",),
    trained_in_full=new_parts,
    load_config=load_config,
    load_processor=load_processor,
    prepare=fill_features,
    save_whole=save_whole,
    sees=lambda inputs: bool(inputs.get("vision_features", torch.zeros(1)).any()),
)
