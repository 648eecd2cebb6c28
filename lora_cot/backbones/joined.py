"""A plain T5 and what it is to see by as one checkpoint, made once and kept where the miniatures are.

With all weights in one folder, loading, quantising, merging and saving need no second way for those that are trained with
T5. The fusion of a plain T5 is not in it: each run begins its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_cot.backbones.cache_root import appearing, cache_root
from lora_cot.hub import checkpoint_file, quietly


@dataclass(frozen=True)
class Joining:
    """What a T5 is joined with."""

    made_of: Any
    """What tells it from any other one, in JSON."""
    config: Callable[[dict[str, Any]], Any]
    """(keys of the T5's configuration) to that of both."""
    tensors: Callable[[], dict[str, torch.Tensor]]
    """Its weights, by their names in both."""
    save: Callable[[Path], None] = lambda folder: None
    """(folder) adds what its images are read with."""


def join(base: str, revision: str | None, other: Joining, weights: bool) -> Path:
    """Folder of the one checkpoint; made now, if it is nowhere yet.

    Args:
        base: of a T5, a folder or hub id.
        revision: of a hub id.
        other: what it is joined with.
        weights: False: configuration and processor alone, made in no time.

    Raises:
        BackboneError: one of them is missing, or cannot be read.
    """
    made_of = [weights, _print(base, revision), other.made_of]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_root("joined") / key
    if not folder.is_dir():
        _make(folder, base, revision, other, weights)
    return folder


def stamp(path: Path) -> list[Any]:
    """What tells a file from another one by that name; one of the hub lies in the folder of its commit."""
    stat = path.stat()
    return [str(path.absolute()), stat.st_size, stat.st_mtime_ns]


def _print(base: str, revision: str | None) -> Any:
    config = checkpoint_file("model.base", base, "config.json", revision)
    if not Path(base).is_dir():
        return config.parent.name
    return [stamp(path) for path in sorted(Path(base).iterdir()) if path.is_file()]


def _make(folder: Path, base: str, revision: str | None, other: Joining, weights: bool) -> None:
    """Write all of it."""
    from transformers import AutoConfig, AutoTokenizer

    with appearing(folder) as staging:
        if weights:
            _write_weights(staging, base, revision, other.tensors())
        values = AutoConfig.from_pretrained(base, revision=revision).to_dict()
        config = other.config({key: value for key, value in values.items() if key not in ("model_type", "architectures")})
        config.save_pretrained(staging)
        AutoTokenizer.from_pretrained(base, revision=revision).save_pretrained(staging)
        other.save(staging)


def _write_weights(folder: Path, base: str, revision: str | None, other: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, T5ForConditionalGeneration

    from lora_cot.backbones.t5_vision_model import T5VisionForConditionalGeneration

    sees = AutoConfig.from_pretrained(base, revision=revision).model_type == "t5_vision"
    kind: Any = T5VisionForConditionalGeneration if sees else T5ForConditionalGeneration
    with quietly():
        kind.from_pretrained(base, revision=revision, dtype="auto").save_pretrained(folder, max_shard_size="1TB")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / "model.safetensors").rename(folder / names[0])
    save_file(dict(other), folder / names[1], {"format": "pt"})
    held = {names[0]: load_file(folder / names[0]), names[1]: other}
    places = {name: file for file, tensors in held.items() for name in tensors}
    size = sum(tensor.numel() * tensor.element_size() for tensors in held.values() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
