"""Processors that transformers makes only with torchvision, made without: only their video half needs it."""

from __future__ import annotations

from typing import Any

import transformers

from lora_cot.recipe.model import ModelSection


def _still(source: type) -> type:
    """The processor class without its video half, under its own name, so that what it saves names the published class."""
    members = {"get_attributes": classmethod(lambda cls: ["image_processor", "tokenizer"]), "__module__": __name__}
    return type(source.__name__, (source,), members)


STILL = {
    name: _still(getattr(transformers, name))
    for name in ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "LlavaOnevisionProcessor")
}
globals().update(STILL)  # a processor that travels to a worker process is found by its class's name


def load_without_video(base: str, section: ModelSection) -> Any:
    """A base's processor; where it could also take videos, without that half."""
    from transformers import AutoConfig, AutoProcessor

    name = PROCESSORS.get(AutoConfig.from_pretrained(base, revision=section.revision).model_type)
    kind: Any = STILL[name] if name else AutoProcessor
    return kind.from_pretrained(base, revision=section.revision)


PROCESSORS = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "llava_onevision": "LlavaOnevisionProcessor",
}
"""Processor class by `model_type`."""
