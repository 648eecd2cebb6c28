"""Where things are kept that can be made again: miniature bases, vision features."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root(what: str) -> Path:
    """The folder of one kind of thing: below LORA_COT_CACHE, or below ~/.cache/lora_cot."""
    root = os.environ.get("LORA_COT_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "lora_cot") / what
