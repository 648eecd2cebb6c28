"""An adapter or a model of ours by its hub id: REPO, or REPO@REVISION for a branch, a tag or a commit.

Only what `layout.PUBLIC` names is downloaded: weights in safetensors, no pickles, no code. Without a network, what was
downloaded before is found in huggingface_hub's cache.
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Any

from lora_cot.checkpoints.layout import (
    ADAPTER_CONFIG,
    CONFIG,
    MODEL_FILES,
    PROCESSOR_FILES,
    RECIPE_FILE,
    VISION_ENCODER,
    adapter_in,
    pass_folders,
)
from lora_cot.errors import Problem, RunError
from lora_cot.recipe import load_saved

TELLING = (RECIPE_FILE, ADAPTER_CONFIG, f"*/{ADAPTER_CONFIG}", CONFIG, f"*/{CONFIG}")
"""Small files that say what a repository holds."""


def hub_id(model: str) -> tuple[str, str | None]:
    """Repository and revision; anything that is there as a file or folder, and any miniature, is only a name."""
    repo, at, revision = model.rpartition("@")
    if not at or not _is_repo(repo) or os.path.lexists(model):
        return model, None
    return repo, revision or None


def pull(model: str) -> Path | None:
    """Folder in the hub's cache of what this package pushed, or of somebody's PEFT adapter, whole.

    None if it is a folder here, a miniature, or a plain model, which transformers looks for by itself; also if there is no
    such repository, or no way to it and nothing in the cache.

    Args:
        model: a hub id, REPO or REPO@REVISION.

    Raises:
        RunError: the repository is not open to this user, or not all of it can be had.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RevisionNotFoundError

    repo, revision = hub_id(model)
    if not _is_repo(repo) or os.path.lexists(model):
        return None
    try:
        folder = _download(repo, revision, TELLING)
    except GatedRepoError:
        remedy = "accept its licence on its hub page, then run `hf auth login`"
        raise RunError(Problem(model, "access to this repository is not granted", remedy)) from None
    except RevisionNotFoundError:
        raise RunError(Problem(model, f"this repository has no revision '{revision}'")) from None
    except (HfHubHTTPError, OSError, ValueError):  # ValueError: a name that the hub would not give
        return None
    if adapter_in(folder) is None and not (folder / RECIPE_FILE).is_file():
        return None
    try:
        return _download(repo, folder.name, _needed(folder))
    except (HfHubHTTPError, OSError) as error:
        what = f"not all of its files can be had: {type(error).__name__}"
        raise RunError(
            Problem(model, what, "check the network, and run it again: what is there is not loaded twice")
        ) from None


def _is_repo(name: str) -> bool:
    """Whether this can be a repository with a namespace."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not name.startswith(("mini/", "./", "../"))


def _download(repo: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"revision": revision, "allow_patterns": list(patterns)}
    return Path(snapshot_download(repo, **options))


def _needed(folder: Path) -> tuple[str, ...]:
    """Names of all files that opening may need: of the repository itself, and of the passes of a split format."""
    places = [folder]
    if (folder / RECIPE_FILE).is_file():
        places += [place for place in pass_folders(folder, load_saved(folder / RECIPE_FILE)).values() if place != folder]
    prefixes = ["" if place == folder else f"{glob.escape(place.name)}/" for place in places]
    inside = [part for prefix in prefixes for part in (prefix, f"{prefix}{VISION_ENCODER}/")]
    names = (*TELLING, *MODEL_FILES, *PROCESSOR_FILES)
    return tuple(f"{prefix}{name}" for prefix in inside for name in names if "/" not in name)
