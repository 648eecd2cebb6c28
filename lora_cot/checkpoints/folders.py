"""A run's folder, and the adapter's folder inside it that is enough for everything afterwards.

runs/NAME/  recipe.yaml  checkpoints/  adapter/  log.jsonl  report.json  report.html  merged/
adapter/    PEFT's own layout, recipe.yaml and the processor

Of a split format, checkpoints/, adapter/ and merged/ hold a folder for each pass: adapter/rationale, adapter/answer. Beside
them are passes/PASS.json, how each finished pass went, and written/PASS/, what it wrote for the next.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_cot.backbones import Backbone
from lora_cot.backbones.loading import save_processor
from lora_cot.errors import Problem, RunError
from lora_cot.recipe import Recipe, dump, load_saved
from lora_cot.recipe.schema import EvaluationSection, SearchSection, TrainingSection

RECIPE_FILE = "recipe.yaml"
LOCK_FILE = ".lock"
LOG_FILE = "log.jsonl"
PASSES, WRITTEN = "passes", "written"
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "deepspeed", "lora_cot")


def run_folder(recipe: Recipe, root: Path = Path("runs")) -> Path:
    """Where the run of a recipe lives."""
    return root / recipe.name


@contextmanager
def open_run(folder: Path, recipe: Recipe) -> Iterator[None]:
    """A run's folder, locked while it is written: a new one, or one of the same recipe that was stopped between passes.

    Raises:
        RunError: another process writes there, or another run is there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK_FILE
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    if lock.exists() and _alive(lock):
        raise RunError(
            Problem(str(folder), f"the folder is in use by {lock.read_text().strip()}", "wait, or set another name=")
        )
    goes_on = _goes_on(folder, recipe)
    lock.unlink(missing_ok=True)
    try:
        with lock.open("x") as file:  # of two that found it free, one fails here
            file.write(json.dumps(owner))
    except FileExistsError:
        raise RunError(Problem(str(folder), "another process has just taken this folder")) from None
    _forget_unfinished(folder, goes_on)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def is_finished(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder holds a run of this recipe, trained to its end."""
    return (folder / "report.json").is_file() and _is_of(folder, recipe)


def _is_of(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder's run is one of this recipe: alike in all that finished passes were trained by.

    What is asked afterwards, the versions, and which samples are too long may have been corrected since.
    """
    path = folder / RECIPE_FILE
    return path.is_file() and _trained_by(load_saved(path)) == _trained_by(recipe)


def _trained_by(recipe: Recipe) -> Recipe:
    training = recipe.training.model_dump(exclude={"max_length", "long_samples"})
    other = {"versions": None, "evaluation": EvaluationSection(), "search": SearchSection()}
    return recipe.model_copy(update={"training": TrainingSection.model_validate(training), **other})


def _goes_on(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder holds a run to go on with.

    Raises:
        RunError: it holds one that is finished, of another recipe, or of a single pass.
    """
    if not any((folder / name).exists() for name in ("adapter", "checkpoints", "report.json")):
        return False
    remedy = "set another name=, or remove the folder"
    if (folder / "report.json").exists() or not recipe.format.build().split:
        raise RunError(Problem(str(folder), "there is a run in this folder already", remedy))
    if not _is_of(folder, recipe):
        raise RunError(Problem(str(folder), "there is an unfinished run of another recipe in this folder", remedy))
    return True


def _forget_unfinished(folder: Path, goes_on: bool) -> None:
    """Take away what a pass left that was stopped, and say so: its lines of the log, its checkpoints, what it wrote."""
    finished = {path.stem for path in (folder / PASSES).glob("*.json")} if goes_on else set()
    if not goes_on:
        shutil.rmtree(folder / PASSES, ignore_errors=True)
    log = folder / LOG_FILE
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() and finished else []
    kept = [line for line in lines if _pass_of(line) in finished]
    log.unlink(missing_ok=True)
    if kept:
        log.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    for place in (*(folder / "checkpoints").glob("*/"), *(folder / WRITTEN).glob("*/")):
        if place.name not in finished:
            print(f"{place.name} begins again: {place} is removed", file=sys.stderr)
            shutil.rmtree(place)


def _pass_of(line: str) -> str | None:
    """The pass that a line of the log is of; None if it was cut off while it was written."""
    try:
        return json.loads(line).get("pass")
    except (ValueError, AttributeError):
        return None


def _alive(lock: Path) -> bool:
    """Whether the lock's owner still runs; one on another host cannot be asked and counts as alive."""
    try:
        owner = json.loads(lock.read_text())
        if owner["host"] != socket.gethostname():
            return True
        os.kill(owner["pid"], 0)
    except (ValueError, KeyError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def versions() -> dict[str, str]:
    """Versions of the packages a run depends on, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """The resolved recipe, with the versions it runs on."""
    text = dump(recipe.model_copy(update={"versions": versions()}))
    (folder / RECIPE_FILE).write_text(text, encoding="utf-8")


def pass_folders(folder: Path, recipe: Recipe) -> dict[str, Path]:
    """Adapter name → where a pass keeps its own under a folder: the folder itself if the format has a single pass."""
    cot_format = recipe.format.build()
    return {one.name: folder / one.name for one in cot_format.passes} if cot_format.split else {"default": folder}


def save_adapter(backbone: Backbone, recipe: Recipe, folder: Path, initial: Path | None = None) -> None:
    """Everything that merging, answering and serving need besides the base itself.

    Args:
        backbone: with the adapter.
        recipe: of the run.
        folder: where to.
        initial: the adapter as it began, where its beginning rewrote the base: it is saved as plain LoRA on the original
            base, of twice the rank.
    """
    for config in backbone.model.peft_config.values():
        config.base_model_name_or_path, config.revision = recipe.model.base, recipe.model.revision
    keys = {} if initial is None else {"path_initial_model_for_weight_conversion": str(initial)}
    backbone.model.save_pretrained(folder, **keys)
    save_processor(backbone, folder)
    write_recipe(recipe, folder)
