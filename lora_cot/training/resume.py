"""Where a run begins: at its start, or at the newest checkpoint that can be trusted, of the same recipe, base and data."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from lora_cot.checkpoints import store
from lora_cot.checkpoints.fingerprints import base_print, data_print, differences, recipe_print
from lora_cot.checkpoints.folders import finished_passes, pass_folders, tidy, versions, write_recipe
from lora_cot.checkpoints.store import Checkpoint
from lora_cot.errors import Problem, RunError
from lora_cot.recipe import Recipe
from lora_cot.training.sharding import stage_of
from lora_cot.types import Sample

INPUTS_FILE = "inputs.json"


@dataclass(frozen=True)
class Start:
    """What a run is made of, and where it begins."""

    about: Mapping[str, Any]
    """Of every checkpoint: fingerprints of recipe, base and data, number of ranks, kind of engine, versions."""
    checkpoint: Checkpoint | None
    """Of the first pass that is not finished; None if there is no good one."""

    def of(self, root: Path) -> Checkpoint | None:
        """The checkpoint, if it is one of these."""
        return self.checkpoint if self.checkpoint and self.checkpoint.folder.parent == root else None


def checkpoint_root(folder: Path, name: str | None) -> Path:
    """Where the checkpoints of a pass are; of a single one, without a name."""
    return folder / "checkpoints" / (name or "")


def find_start(folder: Path, goes_on: bool, recipe: Recipe, data: Sequence[Sequence[Sample]], arguments: Any) -> Start:
    """Compare an unfinished run's inputs with these, and find its newest good checkpoint; the main process does.

    What the run left after that checkpoint is taken away, and what is wrong with newer ones is said.

    Args:
        folder: of the run.
        goes_on: whether it holds an unfinished one; the main process knows.
        recipe: to be trained.
        data: samples, in parts.
        arguments: SFTConfig of any of its passes.

    Raises:
        RunError: another base or other data than before, or another number of processes than the checkpoint can be
            loaded on; each with what to do.
    """
    found: list[Start | None] = [None]
    if PartialState().is_main_process:
        inputs = {"recipe": recipe_print(recipe), "base": base_print(recipe), "data": data_print(*data)}
        about = {"inputs": inputs, **_engine(arguments), "versions": versions()}
        if goes_on:
            found = [Start(about, _go_on(folder, recipe, about, arguments))]
        else:
            tidy(folder, set(), None, None)
            found = [Start(about, None)]
            store.replace_text(folder / INPUTS_FILE, json.dumps(inputs) + "\n")
        write_recipe(recipe, folder)
    (start,) = broadcast_object_list(found)
    assert start is not None
    return start


def _engine(arguments: Any) -> dict[str, Any]:
    engine = f"ZeRO-{stage_of(arguments.deepspeed)}" if arguments.deepspeed else "plain"
    return {"ranks": PartialState().num_processes, "engine": engine}


def _go_on(folder: Path, recipe: Recipe, about: Mapping[str, Any], arguments: Any) -> Checkpoint | None:
    done = finished_passes(folder, recipe)
    waiting = [name for name in pass_folders(folder / "adapter", recipe) if name not in done]
    current = waiting[0] if waiting and recipe.format.build().split else None
    root = checkpoint_root(folder, current) if waiting else None
    found, problems = store.newest_good(root) if root else (None, [])
    if problems and found is None:
        remedy = f"to begin again, remove {root}"
        raise RunError([*problems, Problem(str(folder), "there are checkpoints, and none of them can be trusted", remedy)])
    for problem in problems:
        print(f"passed over: {problem}", file=sys.stderr)
    _check_inputs(folder, found, about)
    if found is not None:
        _check_ranks(found, about, arguments)
    tidy(folder, done, root, found)
    name = f"{current}: " if current else ""
    begins = f"goes on after step {found.step}" if found else "begins again" if waiting else "is trained already"
    print(f"{name}{begins}", file=sys.stderr, flush=True)
    old = {} if found is None else found.about["versions"]
    for package in (key for key, value in about["versions"].items() if key in old and old[key] != value):
        print(f"{package} was {old[package]}, and is {about['versions'][package]}", file=sys.stderr)
    return found


def _check_inputs(folder: Path, found: Checkpoint | None, about: Mapping[str, Any]) -> None:
    """See that a run goes on with what it began with: as its checkpoint says, or else what was written when it began.

    Raises:
        RunError: naming what changed.
    """
    path = folder / INPUTS_FILE
    if found is None and not path.is_file():
        remedy = "set another name=, or remove the folder"
        raise RunError(Problem(str(folder), f"there is an older run in it, without {INPUTS_FILE}", remedy))
    before = found.about["inputs"] if found else json.loads(path.read_text(encoding="utf-8"))
    now, remedy = about["inputs"], "put that back, or set another name="
    names = {"base": "model.base, or the files it names,", "data": "the data"}
    changed = [Problem(str(folder), f"{name} changed since this run began") for key, name in names.items()
               if before[key] != now[key]]  # fmt: skip
    changed += differences(before["recipe"], now["recipe"])
    if changed:
        raise RunError([*changed, Problem("", "an unfinished run goes on with what it began with", remedy)])


def _check_ranks(found: Checkpoint, about: Mapping[str, Any], arguments: Any) -> None:
    """See that a checkpoint can be loaded by these processes.

    Raises:
        RunError: another engine, another number of processes for a sharded optimizer, or other samples in a step.
    """
    was, engine = found.about, about["engine"]
    where, fresh = str(found.folder), f"begin a new run from it: model.adapter={found.folder} name=…"
    if was["engine"] != engine:
        names = {"plain": "no DeepSpeed"}
        what = f"it was written under {names.get(was['engine'], was['engine'])}, and this is {names.get(engine, engine)}"
        raise RunError(Problem(where, what, f"take the same again, or {fresh}"))
    if engine != "plain" and was["ranks"] != about["ranks"]:
        what = f"its optimizer is in {was['ranks']} shards, and there are {about['ranks']} processes"
        raise RunError(Problem(where, what, f"start {was['ranks']} processes, or {fresh}"))
    size = arguments.per_device_train_batch_size * about["ranks"]
    if was["samples_a_step"] != size * arguments.gradient_accumulation_steps:
        what = f"a step took {was['samples_a_step']} samples, and would take {size * arguments.gradient_accumulation_steps}"
        steps, rest = divmod(was["samples_a_step"], size)
        key = "per_device_train_batch_size" if rest else f"gradient_accumulation_steps={steps}"
        raise RunError(Problem(where, what, f"set training.{key}"))
