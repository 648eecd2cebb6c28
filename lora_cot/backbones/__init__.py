"""Families of base models by name."""

from lora_cot.backbones.base import Backbone, Family, part_of
from lora_cot.backbones.chameleon import CHAMELEON
from lora_cot.backbones.llava import LLAVA
from lora_cot.backbones.mllama import MLLAMA
from lora_cot.backbones.qwen2_vl import QWEN2_VL
from lora_cot.backbones.t5_vision import T5_VISION

FAMILIES = {"llava": LLAVA, "mllama": MLLAMA, "qwen2_vl": QWEN2_VL, "t5_vision": T5_VISION, "chameleon": CHAMELEON}

__all__ = ["FAMILIES", "Backbone", "Family", "part_of"]
