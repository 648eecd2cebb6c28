"""Families of base models by name."""

from lora_cot.backbones.base import Backbone, Family, part_of
from lora_cot.backbones.llava import LLAVA
from lora_cot.backbones.mllama import MLLAMA
from lora_cot.backbones.qwen2_vl import QWEN2_VL

FAMILIES = {"llava": LLAVA, "mllama": MLLAMA, "qwen2_vl": QWEN2_VL}

__all__ = ["FAMILIES", "Backbone", "Family", "part_of"]
