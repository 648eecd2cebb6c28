"""What of a folder is pushed: files on a list, each checked before anything is sent; and what is not, with the reason.

Texts are read whole; of weights, which may be many GB, the header with the names, and that the size is what it says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from lora_cot.checkpoints.layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    PROSE,
    PUBLIC,
    RECIPE_FILE,
    VISION_ENCODER,
    WEIGHTS,
    adapter_in,
    holds_model,
    is_named,
    pass_folders,
)
from lora_cot.errors import Problem, RunError
from lora_cot.publishing.checks import check_adapter, check_base, check_model, indexed, is_everybodys, is_verified
from lora_cot.publishing.privacy import file_name, path_problems, public_json, public_prose, public_recipe, secret_problems
from lora_cot.recipe import Recipe, load_saved

ALLOWED = "name a run, an adapter folder or a merged folder that this package wrote"
LINK = "a link"
USED = (RECIPE_FILE, "*.jinja")
"""Texts that a model is run with: a path inside of one of their texts is refused, not changed."""
REASONS = {
    "a training state": ("optimizer*", "scheduler*", "rng*", "random_states*", "trainer_state*", "training_args*", "scaler*"),
    "it is pickled, which can run code": ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt"),
    "a log or a report of this machine": ("*.jsonl", "*.log", "report.*", "events.*", "evaluation.*"),
    "code": ("*.py", "*.sh", "*.so"),
    "hidden": (".*",),
}


@dataclass(frozen=True)
class PushedFile:
    """A file as the hub gets it."""

    name: str
    """In the repository."""
    content: Path | bytes
    """Where it lies; or its text, where that is not the file's own."""
    size: int
    """Bytes."""

    @cached_property
    def sha256(self) -> str:
        """Of its bytes, as the hub names large files."""
        return self._digest("sha256", b"")

    @cached_property
    def blob_id(self) -> str:
        """As git names it."""
        return self._digest("sha1", f"blob {self.size}\0".encode())

    def _digest(self, kind: str, head: bytes) -> str:
        digest = hashlib.new(kind, head, usedforsecurity=False)
        if isinstance(self.content, bytes):
            digest.update(self.content)
        else:
            with self.content.open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
        return digest.hexdigest()


@dataclass(frozen=True)
class Contents:
    """What a push consists of."""

    folder: Path
    kind: Literal["adapter", "merged"]
    recipe: Recipe
    files: tuple[PushedFile, ...]
    left_out: tuple[tuple[str, str], ...]
    """Name and reason of what lies there too."""
    notes: tuple[str, ...]
    """What is pushed otherwise than it lies there."""
    verified: bool
    """Whether a merged model was held against its adapter's; of an adapter there is no need."""


def gather(folder: str | Path, token: str | None = None) -> Contents:
    """Everything of a folder that is to be pushed, checked.

    Args:
        folder: a run, whose adapter is meant; an adapter; or a merged folder. Of a split format, with a folder for each pass.
        token: this user's, to be found nowhere in it.

    Raises:
        RunError: all that is missing, torn or not for others to see.
    """
    place, kind = _place(Path(folder))
    if not (place / RECIPE_FILE).is_file():
        raise RunError(Problem(str(place), f"no {RECIPE_FILE} in this folder", ALLOWED))
    recipe = load_saved(place / RECIPE_FILE)
    passes = pass_folders(place, recipe)
    names, left_out = _listed(place, kind, [one for one in passes.values() if one != place])
    problems = check_base(recipe, passes.values()) if kind == "adapter" else []
    for one in passes.values():
        problems += check_adapter(one, place) if kind == "adapter" else check_model(one, place)
    links = [name for name, why in left_out if why == LINK and is_named(name.rpartition("/")[2], PUBLIC)]
    problems += [Problem(name, "a link is not followed", "put the file itself there") for name in links]
    private = (*public_recipe(recipe)[1].values(), *([] if is_everybodys(recipe.model.base) else [recipe.model.base]))
    files, notes = [], []
    for name in names:
        try:
            file, changed = _public(place, name, recipe, private)
            if isinstance(file.content, bytes):
                told = file.content.decode()
                problems += secret_problems(name, told, token)
                if is_named(name.rpartition("/")[2], USED):
                    problems += path_problems(name, told, private)
        except ValueError as error:
            problems.append(Problem(name, f"it cannot be read: {' '.join(str(error).split())[:200]}", "make the folder anew"))
            continue
        files.append(_as_it_lies(file, place / name))
        if changed:
            notes.append(f"{name}: only the last part of the path is pushed of {', '.join(changed)}")
    if problems:
        raise RunError(problems).at(str(place))
    if place != Path(folder):
        left_out += [(f"{path.name}{'/' * path.is_dir()}", _why(path, kind, True)) for path in _others(Path(folder), place)]
        if (Path(folder) / "merged").is_dir():
            notes.append(f"of a run the adapter is pushed; for its merged model name {Path(folder) / 'merged'}")
    verified = kind == "adapter" or all(is_verified(one) for one in passes.values())
    return Contents(place, kind, recipe, tuple(files), tuple(left_out), tuple(notes), verified)


def _place(folder: Path) -> tuple[Path, Literal["adapter", "merged"]]:
    """The folder that is meant, and what it holds."""
    if not folder.is_dir():
        raise RunError(Problem(str(folder), "no such folder", ALLOWED))
    if place := adapter_in(folder):
        return place, "adapter"
    if holds_model(folder):
        return folder, "merged"
    if (folder / "checkpoints").is_dir() or (folder / RECIPE_FILE).is_file():
        raise RunError(Problem(str(folder), "this run has no adapter yet", "train it to its end"))
    raise RunError(Problem(str(folder), "there is neither an adapter nor a model in this folder", ALLOWED))


def _listed(place: Path, kind: str, passes: list[Path]) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of all files that are pushed, and of what is not, with the reason."""
    names, left_out = [], []
    pending = [place]
    while pending:
        folder = pending.pop()
        is_root_of_passes = bool(passes) and folder == place
        stale = _stale(folder) if kind == "merged" else set()
        for path in sorted(folder.iterdir()):
            name = path.relative_to(place).as_posix()
            inside = folder.name == VISION_ENCODER
            wanted = path in passes or (path.name == VISION_ENCODER and not inside and not is_root_of_passes)
            if path.is_symlink():
                left_out.append((name, LINK))
            elif path.is_dir() and wanted:
                pending.append(path)
            elif path.is_file() and path.name not in stale and _is_public(path.name, kind, inside, is_root_of_passes):
                names.append(name)
            else:
                left_out.append((f"{name}{'/' * path.is_dir()}", _why(path, kind)))
    return sorted(names), sorted(left_out)


def _is_public(name: str, kind: str, inside: bool, is_root_of_passes: bool) -> bool:
    """Whether a file of this name is pushed from a folder of this kind; `inside`: of the vision encoder in it."""
    if is_root_of_passes:
        return is_named(name, (RECIPE_FILE, *PROSE))
    if inside:
        return is_named(name, PUBLIC) and name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, RECIPE_FILE)
    others = (WEIGHTS, INDEX, "model-*") if kind == "adapter" else (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    return is_named(name, PUBLIC) and not is_named(name, others)


def _stale(folder: Path) -> set[str]:
    """Weights in a model's folder that are not its own."""
    own = indexed(folder)
    return {path.name for path in folder.glob("model*.safetensors")} - own if own else set()


def _others(run: Path, place: Path) -> list[Path]:
    return sorted(path for path in run.iterdir() if path != place)


def _why(path: Path, kind: str, in_run: bool = False) -> str:
    """Why something is not pushed."""
    if path.is_dir():
        return "not the adapter's" if in_run else "a folder that is no part of it"
    for why, patterns in REASONS.items():
        if is_named(path.name, patterns):
            return why
    if in_run:
        return "of the run, not the adapter's"
    return f"not a file that {'an adapter' if kind == 'adapter' else 'a merged model'} is opened with"


def _public(place: Path, name: str, recipe: Recipe, private: Sequence[str]) -> tuple[PushedFile, list[str]]:
    """A file as others may read it, and what of it was changed. Texts are read whole; of weights see `checks`.

    Raises:
        ValueError: a text that is none.
    """
    path, last = place / name, name.rpartition("/")[2]
    if last.endswith((".safetensors", ".model", ".png")):
        return PushedFile(name, path, path.stat().st_size), []
    text = path.read_bytes().decode("utf-8")
    changed: list[str] = []
    if last == RECIPE_FILE:
        own = recipe if name == RECIPE_FILE else load_saved(path)
        base = own.model.base
        if not is_everybodys(base):  # a merged model is opened without it, and an adapter refused
            own = own.model_copy(update={"model": own.model.model_copy(update={"base": file_name(base)})})
        shown, shortened = public_recipe(own)
        changed = [*(["model.base"] if own.model.base != base else []), *shortened]
        text = shown if changed else text
    elif last.endswith(".json"):
        text, changed = public_json(last, text, private)
    elif is_named(last, PROSE):
        text, changed = public_prose(text, private)
    content = text.encode()
    return PushedFile(name, content, len(content)), changed


def _as_it_lies(file: PushedFile, path: Path) -> PushedFile:
    """The file by its path where its text was not changed, so that it takes no memory."""
    same = isinstance(file.content, bytes) and path.read_bytes() == file.content
    return replace(file, content=path) if same else file
