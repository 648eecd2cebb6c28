"""Files of a checkpoint, wherever it is, with what is wrong in our words; and reading one quietly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_cot.errors import BackboneError, Problem


def checkpoint_file(key: str, checkpoint: str, name: str, revision: str | None) -> Path:
    """Path of a file of a folder, or of a hub repository, from where it is downloaded if need be.

    Args:
        key: of the recipe that names the checkpoint.
        checkpoint: folder or hub id.
        name: of the file.
        revision: of a hub repository.

    Raises:
        BackboneError: the folder lacks the file, or the hub does not give it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    where = f"{key} {checkpoint}"
    path = Path(checkpoint) / name
    if path.is_file():
        return path
    if Path(checkpoint).is_dir():
        raise BackboneError(Problem(where, f"the folder holds no {name}", "name a checkpoint's folder"))
    if Path(checkpoint).is_file():
        raise BackboneError(Problem(where, "is a file", "name a folder with a checkpoint, a run or an adapter, or a hub id"))
    try:
        return Path(hf_hub_download(checkpoint, name, revision=revision))
    except GatedRepoError:
        remedy = "accept its licence on its hub page, then run `hf auth login`"
        raise BackboneError(Problem(where, "access to this repository is not granted", remedy)) from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        remedy = "check the name, the network, or `hf auth login`"
        raise BackboneError(Problem(where, "neither a folder nor a hub id that can be read", remedy)) from None


def cached_file(checkpoint: str, name: str, revision: str | None) -> Path | None:
    """Path of a file of a folder, or of a hub repository as far as it was downloaded; None if it is not here."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(checkpoint).is_dir():
        return Path(checkpoint) / name if (Path(checkpoint) / name).is_file() else None
    try:
        found = try_to_load_from_cache(checkpoint, name, revision=revision)
    except HFValidationError:  # no name of a repository: the folder that it named is gone
        return None
    return Path(found) if isinstance(found, str) else None


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' report of tensors that are left out or missing, where there always are some."""
    from transformers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
