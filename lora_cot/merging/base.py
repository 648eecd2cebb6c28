"""A base before anything is added: its files, and which parameter of the model each of their tensors becomes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_cot.backbones import Family
from lora_cot.checkpoints.layout import CONFIG, INDEX, LICENCES, PROCESSOR_FILES, WEIGHTS
from lora_cot.errors import BackboneError, Problem
from lora_cot.hub import checkpoint_file
from lora_cot.merging.checkpoint import TensorFile, open_file

SMALL = (CONFIG, "generation_config.json", *PROCESSOR_FILES, *LICENCES)
"""Files of a base that go along with its weights, licences among them."""


@dataclass(frozen=True)
class Base:
    """A base's files, and what they are to the model."""

    folder: Path
    files: tuple[TensorFile, ...]
    parameters: Mapping[str, str]
    """Tensor → parameter of the model. Tensors that become none are copied."""
    tied: tuple[tuple[str, ...], ...]
    """Parameters that are one weight; first the one that the files hold."""
    new: frozenset[str]
    """Parameters of parts that a plain base lacks and the adapter brings."""

    @property
    def tensors(self) -> dict[str, TensorFile]:
        """The file of each tensor."""
        return {name: file for file in self.files for name in file.entries}


def read_base(folder: Path, model: Any, family: Family) -> Base:
    """A base's files, their headers read.

    Args:
        folder: of the base.
        model: the transformers model on the meta device, without adapters.
        family: its family.

    Raises:
        BackboneError: a file is missing or of a kind that is not read.
    """
    files = tuple(weight_files(folder))
    tensors = {name: file for file in files for name in file.entries}
    parameters = parameter_names(model, tensors)
    where = {parameter: tensor for tensor, parameter in parameters.items()}
    paths = tuple(f"{family.parts[part]}." for part in family.trained_in_full(model))
    new = frozenset(name for name in model.state_dict() if paths and name.startswith(paths))
    return Base(folder, files, parameters, _tied_groups(model, where), new)


def base_folder(base: str, revision: str | None) -> Path:
    """Folder of a base with its weights and the files that go along; of a hub id, downloaded or from the cache.

    Raises:
        BackboneError: neither a folder nor a hub id that can be read.
    """
    config = checkpoint_file("model.base", base, CONFIG, revision)
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base, revision=revision, allow_patterns=[*SMALL, "model*.safetensors", INDEX]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        what = f"its files cannot be had: {' '.join(str(error).split())[:200]}"
        raise BackboneError(Problem(f"model.base {base}", what, f"check the network; {config.parent} holds a part")) from None


def weight_files(folder: Path) -> list[TensorFile]:
    """The files of a checkpoint's weights, in the order of its index.

    Raises:
        BackboneError: it has none in safetensors, is saved quantised, or a file is missing or cut off.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    where = f"model.base {folder}"
    if config.get("quantization_config"):
        what = f"its weights are saved quantised ({config['quantization_config'].get('quant_method', '?')})"
        raise BackboneError(Problem(where, what, "name the original checkpoint as the recipe's model.base"))
    if (folder / INDEX).is_file():
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    elif (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    else:
        what = f"there is neither {INDEX} nor {WEIGHTS}; weights that are pickled (.bin) are not read, for they can run code"
        remedy = "save it anew with transformers: from_pretrained(…).save_pretrained(FOLDER), and name that folder"
        raise BackboneError(Problem(where, what, remedy))
    return [open_file(folder / name) for name in names]


def parameter_names(model: Any, tensors: Iterable[str]) -> dict[str, str]:
    """Tensor of a checkpoint → parameter of the model it becomes, by transformers' own rules for loading.

    Published checkpoints name their tensors otherwise than transformers 5 its modules, and otherwise than it saves them.

    Args:
        model: the transformers model, without adapters.
        tensors: names in the checkpoint. Those that become no parameter are left out, as transformers leaves them out.

    Raises:
        BackboneError: a tensor does not become one parameter, but a piece of one, or several.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    known = model.state_dict()
    names = {}
    for tensor in tensors:
        name, converted = rename_source_key(tensor, renamings, converters, model.base_model_prefix, known)
        if name not in known and tensor in known:
            name, converted = rename_source_key(tensor, [], [], model.base_model_prefix, known)
        if name in known and converted is not None:
            what = f"the tensor {tensor} is rearranged when it is loaded ({converted}), which a merge cannot undo"
            raise BackboneError(Problem("model.base", what, "merge it with PEFT's merge_and_unload"))
        if name in known:
            names[tensor] = name
    return names


def _tied_groups(model: Any, where: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Parameters that the model's classes and configuration make one weight; first one that the files hold."""
    groups: dict[str, list[str]] = {}
    for target, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        groups.setdefault(source, [source]).append(target)
    held = [sorted(group, key=lambda name: name not in where) for group in groups.values()]
    return tuple(tuple(group) for group in held if group[0] in where)
