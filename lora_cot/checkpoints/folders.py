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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lora_cot.backbones import Backbone
from lora_cot.backbones.loading import save_processor
from lora_cot.checkpoints.fingerprints import differences, recipe_print
from lora_cot.checkpoints.layout import ADAPTER_CONFIG, RECIPE_FILE, RUN_REPORT, pass_folders
from lora_cot.checkpoints.store import Checkpoint, make_durable, replace_text
from lora_cot.errors import Problem, RunError
from lora_cot.recipe import Recipe, dump, load_saved

HEARTBEAT = ".heartbeat"
"""Folder of a file for each rank: where it is."""
LOCK_FILE, OWNER_FILE = ".lock", ".owner"
LOCK_PATIENCE = 10.0
"""Seconds that a folder is waited for: workers of a process that was killed hold its lock until they notice."""
LOG_FILE = "log.jsonl"
PASSES, WRITTEN = "passes", "written"
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "deepspeed", "lora_cot")


def run_folder(recipe: Recipe, root: Path = Path("runs")) -> Path:
    """Where the run of a recipe lives."""
    return root / recipe.name


@contextmanager
def open_run(folder: Path, recipe: Recipe) -> Iterator[bool]:
    """A run's folder, locked while it is written. Gives whether it holds an unfinished run of this recipe.

    The lock is the operating system's: it ends with its process, however that ends.

    Raises:
        RunError: another process writes there, a finished run is there, or one of another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / LOCK_FILE), folder / OWNER_FILE
    try:
        lock.acquire(timeout=LOCK_PATIENCE)
    except Timeout:
        known = owner.read_text(encoding="utf-8").strip() if owner.is_file() else "another process"
        raise RunError(Problem(str(folder), f"the folder is in use by {known}", "wait, or set another name=")) from None
    try:
        goes_on = _goes_on(folder, recipe)
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield goes_on
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def is_finished(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder holds a run of this recipe, trained to its end."""
    return (folder / RUN_REPORT).is_file() and not changes(folder, recipe)


def changes(folder: Path, recipe: Recipe) -> list[Problem]:
    """What differs between the recipe of a folder's run and this one, of all that it was trained by."""
    before = load_saved(folder / RECIPE_FILE)
    return differences(recipe_print(before), recipe_print(recipe))


def _goes_on(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder holds a run to go on with.

    Raises:
        RunError: it holds one that is finished, or of another recipe.
    """
    if (folder / RUN_REPORT).exists():
        remedy = "set another name=, or remove the folder"
        raise RunError(Problem(str(folder), "there is a finished run in this folder already", remedy))
    if not any((folder / name).exists() for name in ("adapter", "checkpoints")):
        return False
    if not (folder / RECIPE_FILE).is_file():
        raise RunError(Problem(str(folder), f"there is something else in this folder: no {RECIPE_FILE}", "set another name="))
    if different := changes(folder, recipe):
        raise RunError([Problem(str(folder), "there is an unfinished run of another recipe in this folder"), *different])
    return True


def finished_passes(folder: Path, recipe: Recipe) -> set[str]:
    """Names of the adapters that are trained, as `pass_folders` has them, and that are there."""
    places = pass_folders(folder / "adapter", recipe)
    done = {path.stem for path in (folder / PASSES).glob("*.json")}
    return {name for name, place in places.items() if name in done and (place / ADAPTER_CONFIG).is_file()}


def tidy(folder: Path, kept: set[str], root: Path | None, start: Checkpoint | None) -> None:
    """Take away what an unfinished pass left after its last good checkpoint: lines of the log, and files, if there is none.

    Args:
        folder: of the run.
        kept: its finished passes.
        root: checkpoints of the pass that goes on; None if none does.
        start: the one it goes on from; None if it begins again.
    """
    shutil.rmtree(folder / HEARTBEAT, ignore_errors=True)  # of processes that are no more
    for record in (folder / PASSES).glob("*.json"):
        if record.stem not in kept:
            record.unlink()
    log = folder / LOG_FILE
    if log.is_file():
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        rows = [(line, _row(line)) for line in lines]
        good = [line for line, row in rows if row and (row.get("pass", "default") in kept or _is_before(row, start))]
        replace_text(log, "".join(f"{line}\n" for line in good))
    for place in (folder / WRITTEN).glob("*/"):
        if place.name not in kept:
            shutil.rmtree(place)
    if root is not None and start is None:
        shutil.rmtree(root, ignore_errors=True)


def _is_before(row: Mapping[str, Any], start: Checkpoint | None) -> bool:
    """Whether an entry of the log will not be written again; an evaluation that is made up for will, and the summary."""
    if start is None or "train_runtime" in row or row.get("step", start.step + 1) > start.step:
        return False
    return row["step"] < start.step or not start.about["pending"] or not any(key.startswith("eval_") for key in row)


def _row(line: str) -> dict[str, Any]:
    """A line of the log; nothing if it was cut off while it was written."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


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
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / RECIPE_FILE, text)


def save_adapter(backbone: Backbone, recipe: Recipe, folder: Path, initial: Path | None = None) -> None:
    """Everything that merging, answering and serving need besides the base itself; the folder appears whole.

    Args:
        backbone: with the adapter.
        recipe: of the run.
        folder: where to; what is there is replaced.
        initial: the adapter as it began, where its beginning rewrote the base: it is saved as plain LoRA on the original
            base, of twice the rank.
    """
    for config in backbone.model.peft_config.values():
        config.base_model_name_or_path, config.revision = recipe.model.base, recipe.model.revision
    keys = {} if initial is None else {"path_initial_model_for_weight_conversion": str(initial)}
    staged = folder.with_name(f".{folder.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    backbone.model.save_pretrained(staged, **keys)
    save_processor(backbone, staged)
    write_recipe(recipe, staged)
    (staged / "README.md").unlink(missing_ok=True)  # PEFT's, which is empty of all that matters: see `cards`
    make_durable(staged)
    shutil.rmtree(folder, ignore_errors=True)
    staged.rename(folder)
