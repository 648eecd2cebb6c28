"""Where things are kept that can be made again, miniature bases and vision features, and how a folder of it is made."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root(what: str) -> Path:
    """The folder of one kind of thing: below LORA_COT_CACHE, or below ~/.cache/lora_cot."""
    root = os.environ.get("LORA_COT_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "lora_cot") / what


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """An empty folder to be filled, which then takes the place of `folder`: that appears whole or not at all.

    Where another process has made it meanwhile, that one stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield staging
        staging.chmod(0o755)  # mkdtemp makes it private
        try:
            staging.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
