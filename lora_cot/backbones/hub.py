"""One file of a checkpoint, wherever the checkpoint is; what is wrong with it in our words."""

from __future__ import annotations

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
    try:
        return Path(hf_hub_download(checkpoint, name, revision=revision))
    except GatedRepoError:
        remedy = "accept its licence on its hub page, then run `hf auth login`"
        raise BackboneError(Problem(where, "access to this repository is not granted", remedy)) from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        remedy = "check the name, the network, or `hf auth login`"
        raise BackboneError(Problem(where, "neither a folder nor a hub id that can be read", remedy)) from None
