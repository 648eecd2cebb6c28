"""Families of base models by name."""

from lora_cot.backbones.base import Backbone, Family, part_of
from lora_cot.backbones.chameleon import CHAMELEON
from lora_cot.backbones.llava import LLAVA
from lora_cot.backbones.mllama import MLLAMA
from lora_cot.backbones.qwen2_vl import QWEN2_VL
from lora_cot.backbones.t5_diffusion import T5_DIFFUSION
from lora_cot.backbones.t5_tuned import T5_TUNED
from lora_cot.backbones.t5_vision import T5_VISION

FAMILIES = {family.name: family for family in (LLAVA, MLLAMA, QWEN2_VL, T5_VISION, T5_TUNED, T5_DIFFUSION, CHAMELEON)}

__all__ = ["FAMILIES", "Backbone", "Family", "part_of"]
