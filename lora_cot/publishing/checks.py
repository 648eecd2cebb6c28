"""That a folder holds a whole adapter or model, as far as its files tell without loading them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora_cot.cards.licences import licence_of, name_problem
from lora_cot.checkpoints.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, INDEX, REPORT, VISION_ENCODER, WEIGHTS
from lora_cot.errors import Problem
from lora_cot.publishing.privacy import is_place
from lora_cot.recipe import Recipe

ANEW = "make the folder anew"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
PAIRS = {
    "lora_A.": "lora_B.",
    "lora_B.": "lora_A.",
    "lora_embedding_A": "lora_embedding_B",
    "lora_embedding_B": "lora_embedding_A",
}


def check_base(recipe: Recipe, adapters: Iterable[Path]) -> list[Problem]:
    """What an adapter says it stands on must be there for others too, and the same everywhere."""
    base, diffusion = recipe.model.base, recipe.model.diffusion
    remedy = "push the merged model instead, or train on a base of the hub"
    problems = []
    if not is_everybodys(base):
        problems.append(Problem("recipe.yaml · model.base", f"'{Path(base).name}' is on this machine only", remedy))
    seen_by = {
        "vision_encoder": recipe.model.vision_encoder,
        "diffusion.checkpoint": diffusion.checkpoint if diffusion else None,
    }
    for key, place in seen_by.items():
        if place is not None and not is_everybodys(place):
            what = f"'{Path(place).name}' is on this machine only"
            problems.append(Problem(f"recipe.yaml · model.{key}", what, remedy))
    for folder in adapters:
        told = _json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        if told is not None and told != base:
            what = "it names another base than recipe.yaml"
            problems.append(Problem(f"{folder.name}/{ADAPTER_CONFIG}", what, "make both name the one it was trained on"))
    return problems


def against_public(repo: str, recipe: Recipe | None, verified: bool) -> list[Problem]:
    """Why a model should not be open to everybody.

    Args:
        repo: that it is to be pushed to.
        recipe: of its run, if it is known yet.
        verified: whether its merge is; an adapter needs none.
    """
    problems = []
    base = recipe.model if recipe else None
    if base and (ill_named := name_problem(licence_of(base.base, base.revision), repo)):
        problems.append(Problem(repo, ill_named, "name it so, or push without --public"))
    if not verified:
        remedy = "merge again without --no-verify, or push without --public: the card tells it"
        problems.append(Problem(repo, "the merge was not verified", remedy))
    return problems


def is_verified(folder: Path) -> bool:
    """Whether a merged model was held against its adapter's."""
    return _json(folder / REPORT).get("verified") is True


def is_everybodys(base: str) -> bool:
    """Whether a base is found by everybody: a hub id, or a miniature of ours."""
    return base.startswith("mini/") or bool(HUB_ID.fullmatch(base) and not is_place(base) and not Path(base).exists())


def check_adapter(folder: Path, root: Path) -> list[Problem]:
    """What is wrong with an adapter's files.

    Args:
        folder: of the adapter.
        root: that names of files are given relative to.
    """
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()]
    if missing:
        return [Problem(_name(folder / name, root), "this file is missing", ANEW) for name in missing]
    config, where = _json(folder / ADAPTER_CONFIG), _name(folder / ADAPTER_WEIGHTS, root)
    tensors, problems = _tensors(folder / ADAPTER_WEIGHTS, root)
    if problems:
        return problems
    if not tensors:
        return [Problem(where, "it holds no weights", ANEW)]
    alone = [name for name in tensors for a, b in PAIRS.items() if a in name and name.replace(a, b) not in tensors]
    layers = {re.split(r"\.lora_(?:A|embedding_A)", name)[0] for name in tensors if re.search(r"lora_(embedding_)?A", name)}
    wanted = config.get("target_modules")
    absent = [
        f"{target}.lora_A"
        for target in (sorted(wanted) if isinstance(wanted, list) else ())
        if not any(layer.endswith(f".{target}") or layer == target for layer in layers)
    ]
    saved = config.get("modules_to_save") or ()
    absent += [module for module in saved if not any(f".{module}." in f".{name}." for name in tensors)]
    if config.get("use_dora"):
        absent += [
            f"{layer}.lora_magnitude_vector" for layer in layers if not any(t.startswith(f"{layer}.lora_m") for t in tensors)
        ]
    gone = [*(f"the other half of {name}" for name in alone), *absent]
    return [Problem(where, f"{len(gone)} weights are missing, {gone[0]} among them", ANEW)] if gone else _encoder(folder, root)


def check_model(folder: Path, root: Path) -> list[Problem]:
    """What is wrong with a merged model's files.

    Args:
        folder: of the model.
        root: that names of files are given relative to.
    """
    if not (folder / CONFIG).is_file():
        return [Problem(_name(folder / CONFIG, root), "this file is missing", ANEW)]
    names = indexed(folder)
    if not names:
        return [Problem(_name(folder / WEIGHTS, root), "this file is missing, and there is no index of others", ANEW)]
    problems, held = [], {}
    for name in sorted(names):
        if not (folder / name).is_file():
            problems.append(Problem(_name(folder / name, root), "this file is missing", ANEW))
            continue
        tensors, found = _tensors(folder / name, root)
        problems += found
        held[name] = tensors
        if left := sorted(tensor for tensor in tensors if re.search(r"\.lora_|\.base_layer\.|modules_to_save", tensor)):
            problems.append(Problem(_name(folder / name, root), f"{left[0]} is an adapter's weight", "merge it anew"))
    if not problems and (folder / INDEX).is_file():
        weight_map = _json(folder / INDEX).get("weight_map") or {}
        gone = sorted(tensor for tensor, name in weight_map.items() if tensor not in held.get(name, ()))
        if gone:
            what = f"{len(gone)} tensors of its index are missing, {gone[0]} among them"
            problems.append(Problem(_name(folder / INDEX, root), what, ANEW))
    return problems or _encoder(folder, root)


def indexed(folder: Path) -> set[str]:
    """Names of the files that hold a model's weights; none if it has none."""
    if (folder / INDEX).is_file():
        return set((_json(folder / INDEX).get("weight_map") or {}).values())
    return {WEIGHTS} if (folder / WEIGHTS).is_file() else set()


def _encoder(folder: Path, root: Path) -> list[Problem]:
    """What is wrong with the vision encoder that goes along, if there is one."""
    place = folder / VISION_ENCODER
    return check_model(place, root) if place.is_dir() and not place.is_symlink() else []


def _tensors(path: Path, root: Path) -> tuple[set[str], list[Problem]]:
    """Names in a safetensors file; its size must agree with its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return set(file.keys()), []
    except (SafetensorError, OSError) as error:
        what = f"the file is cut off or damaged: {' '.join(str(error).split())[:120]}"
        return set(), [Problem(_name(path, root), what, ANEW)]


def _json(path: Path) -> dict[str, Any]:
    """A JSON file's object; nothing if it cannot be read, which is told where it is gathered."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
