"""What a run is trained on, as short texts that are equal only if it is the same: its recipe, its base, its data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_cot.backbones.loading import base_of
from lora_cot.checkpoints.layout import ADAPTER_WEIGHTS, CONFIG
from lora_cot.checkpoints.opening import find_adapter
from lora_cot.errors import Problem
from lora_cot.hub import checkpoint_file
from lora_cot.recipe import Recipe
from lora_cot.types import Image, Sample

MAY_DIFFER = (
    "versions",
    "evaluation",
    "search",
    "training.max_length",
    "training.long_samples",
    "training.per_device_train_batch_size",
    "training.per_device_eval_batch_size",
    "training.gradient_accumulation_steps",
    "training.gradient_checkpointing",
    "training.load_best_model_at_end",
    "training.logging_steps",
    "training.save_steps",
    "training.save_strategy",
    "training.save_total_limit",
    "training.dataloader_num_workers",
    "training.dataloader_prefetch_factor",
    "training.dataloader_persistent_workers",
    "training.dataloader_pin_memory",
    "training.ddp_timeout",
    "training.deepspeed",
    "training.hang_after",
    "training.report_to",
    "training.disable_tqdm",
)
"""Keys, or sections, of a recipe that may be changed before a run goes on: what they change of the training is nothing, or
is compared by itself (which samples make a step, and what shares out the optimizer)."""
SAMPLED = 1 << 20
"""Bytes at each end of a weight file that are looked at; the middle of a file of many GB is not."""
HEAD = 1 << 14
"""Bytes of an image file that are looked at, besides its size."""
_ABSENT = "not set"


def recipe_print(recipe: Recipe) -> dict[str, Any]:
    """The recipe by dotted key, without what may differ.

    How questions are answered may not where the answers decide something: what a later pass is trained on, or which
    checkpoint is the best. Nor may the limit of length where it decides how large images are shown.
    """
    training = recipe.training
    decides = training.hand_on == "predicted" or training.library.get("metric_for_best_model") not in (
        None,
        "loss",
        "eval_loss",
    )
    free = {key for key in MAY_DIFFER if not (decides and key == "search")}
    if training.long_samples == "shrink_image":
        free -= {"training.max_length", "training.long_samples"}
    flat = dict(_flat(recipe.model_dump(mode="json")))
    return {key: value for key, value in flat.items() if not any(f"{key}.".startswith(f"{one}.") for one in free)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Problem]:
    """One line for each key whose value is another one."""
    keys = [key for key in {**before, **now} if before.get(key, _ABSENT) != now.get(key, _ABSENT)]
    remedy = "set it back, or set another name="
    return [Problem(key, f"it was {before.get(key, _ABSENT)}, and is {now.get(key, _ABSENT)}", remedy) for key in keys]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def base_print(recipe: Recipe) -> str:
    """Of the base, its vision encoder and the adapter that is gone on from: their files, or the commit of a hub id."""
    model = recipe.model
    places = [(base_of(model), model.revision)]
    if model.vision_encoder is not None:
        places.append((model.vision_encoder, model.vision_revision))
    prints = [_checkpoint_print(place, revision) for place, revision in places]
    return _digest([*prints, None if model.adapter is None else _adapter_print(model.adapter)])


def _checkpoint_print(place: str, revision: str | None) -> Any:
    if Path(place).is_dir():
        return _folder_print(Path(place))
    return checkpoint_file("model.base", place, CONFIG, revision).parent.name  # the cache's folder of a commit


def _adapter_print(adapter: str) -> list[Any]:
    """Of the adapter in a run, in a folder of its own or of a hub id; whatever else is written there since does not count."""
    inside = find_adapter(adapter) or Path(adapter)
    return [[str(path.relative_to(inside)), _ends(path)] for path in sorted(inside.rglob(ADAPTER_WEIGHTS))]


def _folder_print(folder: Path) -> list[Any]:
    kept = {".safetensors", ".json", ".bin", ".model", ".txt", ".jinja"}
    files = sorted(path for path in folder.rglob("*") if path.suffix in kept and ".cache" not in path.parts)
    return [[str(path.relative_to(folder)), path.stat().st_size, _ends(path)] for path in files]


def _ends(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(SAMPLED)
        file.seek(max(path.stat().st_size - SAMPLED, 0))
        return hashlib.sha256(head + file.read()).hexdigest()


def data_print(*parts: Iterable[Sample]) -> str:
    """Of all samples, in order: their texts, and of each image its bytes, or of a file or table their number and beginning."""
    digest = hashlib.sha256()
    for part in parts:
        for sample in part:
            texts = [[e.question, dict(e.stages or {}), e.answer] for e in sample.exchanges]
            row = [sample.id, texts, list(sample.choices), [_image_print(image) for image in sample.images]]
            row += [sample.preface] if sample.preface else []
            digest.update(json.dumps(row, sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _image_print(image: Image) -> Any:
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    if isinstance(image, Path):
        with image.open("rb") as file:
            return [image.stat().st_size, hashlib.sha256(file.read(HEAD)).hexdigest()]
    content = image.read()  # its size was looked at in the same way
    return [len(content), hashlib.sha256(content[:HEAD]).hexdigest()]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
