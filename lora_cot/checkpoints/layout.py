"""Which file is what in a folder that holds an adapter or a model, wherever it lies; nothing heavy is imported to know it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from lora_cot.recipe import Recipe

RECIPE_FILE, ADAPTER_CONFIG, CONFIG = "recipe.yaml", "adapter_config.json", "config.json"
ADAPTER_WEIGHTS, WEIGHTS, INDEX = "adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json"
REPORT, RUN_REPORT = "merge_report.json", "report.json"
"""Of a merge; and of a training, which it says is finished."""

PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
MODEL_FILES = (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    "generation_config.json",
    WEIGHTS,
    "model-?????-of-?????.safetensors",
    INDEX,
    REPORT,
)
LICENCES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
PROSE = ("README.md", *LICENCES, "loss*.png", "card.json")
"""For people: a model opens without them."""
VISION_ENCODER = "vision_encoder"
"""Folder inside a T5's of what makes its features, where that is none of the hub's."""
PUBLIC = (RECIPE_FILE, *MODEL_FILES, *PROCESSOR_FILES, *PROSE)
"""All that a folder of an adapter or a model may hold for others to have: what is pushed, and what is pulled."""


def is_named(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file's name, without folders, is one of these."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def pass_folders(folder: Path, recipe: Recipe) -> dict[str, Path]:
    """Adapter name → where a pass keeps its own under a folder: the folder itself if the format has a single pass."""
    cot_format = recipe.format.build()
    return {one.name: folder / one.name for one in cot_format.passes} if cot_format.split else {"default": folder}


def adapter_in(folder: Path) -> Path | None:
    """The adapter's folder in a run, or the folder itself if it is one; of a split format, the folder of its adapters."""
    for place in (folder / "adapter", folder):
        if (place / ADAPTER_CONFIG).is_file():
            return place
        if (place / RECIPE_FILE).is_file() and any(place.glob(f"*/{ADAPTER_CONFIG}")):
            return place
    return None


def holds_model(folder: Path) -> bool:
    """Whether a folder is that of a model without adapters; of a split format, that of its models."""
    return (folder / CONFIG).is_file() or ((folder / RECIPE_FILE).is_file() and any(folder.glob(f"*/{CONFIG}")))
