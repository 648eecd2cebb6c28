"""Recipes: one YAML file is one run."""

from lora_cot.recipe.load import dump, load_recipe, load_saved
from lora_cot.recipe.schema import Recipe

__all__ = ["Recipe", "dump", "load_recipe", "load_saved"]
