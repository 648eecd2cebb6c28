"""Families of base models by name."""

from lora_cot.backbones.base import Backbone, Family, part_of
from lora_cot.backbones.llava import LLAVA

FAMILIES = {"llava": LLAVA}

__all__ = ["FAMILIES", "Backbone", "Family", "part_of"]
