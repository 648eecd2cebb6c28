"""An adapter or a model of ours by its hub id: REPO, or REPO@REVISION for a branch, a tag or a commit.

Only what `layout.PUBLIC` names is downloaded: weights in safetensors, no pickles, no code. Without a network, what was
downloaded before is found in huggingface_hub's cache.
"""

from __future__ import annotations

import glob
import os
import re
from contextlib import suppress
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
    holds_model,
    pass_folders,
)
from lora_cot.errors import AccessError, HubError, LoraCotError, Problem, RunError, nearest
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
    way to the hub, for the plain model may be in its cache.

    Args:
        model: a hub id, REPO or REPO@REVISION.

    Raises:
        RunError: it looks like a folder here that is missing; there is no such repository or revision; or not all of it can
            be had.
        AccessError: the repository is not open to this user, or the token is wrong.
        HubError: the hub failed.
    """
    from huggingface_hub.errors import HfHubHTTPError

    repo, revision = hub_id(model)
    if os.path.lexists(model):
        return None
    _check_here(model)
    if not _is_repo(repo):
        return None
    try:
        folder = _download(repo, revision, TELLING)
    except (HfHubHTTPError, OSError, ValueError) as error:  # ValueError: a name that the hub would not give
        if found := _explained(model, error):
            raise found from None
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


def _check_here(model: str) -> None:
    """See that a path is not only mistyped: one whose folder holds models of ours means one of them.

    Raises:
        RunError: it names none of them.
    """
    parent = Path(model).parent
    if "/" not in model or "@" in model or model.startswith("mini/") or not parent.is_dir():
        return
    there = []
    with suppress(OSError):  # of a folder that may not be looked into
        there = [path.name for path in parent.iterdir() if path.is_dir() and (adapter_in(path) or holds_model(path))]
    if there:
        other = f"; a repository of the hub is {model}@main" if _is_repo(model) else ""
        raise RunError(Problem(model, "no such folder", nearest(Path(model).name, there) + other))


def _explained(model: str, error: Exception) -> LoraCotError | None:
    """Why the hub does not give a repository; None if it was not reached, or cannot have one of that name."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error.__cause__, HfHubHTTPError):  # of an answer that may be another the next time
        error = error.__cause__
    if not isinstance(error, HfHubHTTPError):
        return None
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        what = f"this repository has no revision '{hub_id(model)[1]}'"
        return RunError(Problem(model, what, "its hub page lists its branches, tags and commits"))
    if isinstance(error, GatedRepoError) or status == 403:
        remedy = "accept its licence on its hub page, then run `hf auth login`"
        return AccessError(Problem(model, "access to this repository is not granted", remedy), status)
    if isinstance(error, RepositoryNotFoundError):
        wants, remedy = "wants a token", "run `hf auth login`"
        if get_token():
            wants, remedy = "this token may not read", "take a token that may read it"
        what = f"no such folder, and no such repository on the hub, or a private one that {wants}"
        return RunError(Problem(model, what, f"check the name; for a private one {remedy}"))
    if status == 401:
        remedy = "run `hf auth login`, or unset HF_TOKEN"
        return AccessError(Problem(model, "the hub does not take this token", remedy), status)
    remedy = "try again later" if status >= 500 or status in (408, 425, 429) else "check the name"
    return HubError(Problem(model, f"the hub answered {status}", remedy))


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
