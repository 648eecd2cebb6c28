"""Checkpoints that can be trusted: written beside their place, sealed by a manifest, and put there by one rename.

checkpoints/  checkpoint-20/  checkpoint-30/  manifest.json in each, with the sha256 of every other file and of itself

The trainer of transformers writes in place, resumes from what a kill left half written, and safetensors does not notice a
flipped bit. Here a folder named checkpoint-N is whole, or its manifest tells.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_cot.errors import Problem, RunError

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"
STAGED, REPLACED, REMOVED, DAMAGED = ".staged-", ".replaced-", ".removed-", ".damaged"


@dataclass(frozen=True)
class Checkpoint:
    """One that was verified."""

    folder: Path
    step: int
    about: Mapping[str, Any]
    """What its writer said of it."""


def begin(root: Path, step: int) -> Path:
    """An empty folder for a checkpoint's files, on the same file system as its place."""
    staged = staged_folder(root, step)
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    return staged


def staged_folder(root: Path, step: int) -> Path:
    """Where a checkpoint's files are written before it is one."""
    return root / f"{STAGED}{PREFIX}{step}"


def commit(staged: Path, about: Mapping[str, Any]) -> Path:
    """Seal what was written into a staged folder and put it in its place; returns that.

    Every file is on the disk before the manifest is, and the manifest before the folder has its name. A checkpoint of the
    same step is replaced.

    Args:
        staged: as `begin` made it; nobody writes to it any more.
        about: values of JSON, for who loads it.

    Raises:
        OSError: the disk takes no more; the staged folder is left to its owner.
    """
    make_durable(staged)
    files = {str(path.relative_to(staged)): _entry(path) for path in sorted(staged.rglob("*")) if path.is_file()}
    name = staged.name.removeprefix(STAGED)
    content = {"step": int(name.removeprefix(PREFIX)), "about": dict(about), "files": files}
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps({**content, "sha256": _digest(content)}, separators=(",", ":")), encoding="utf-8")
    flush(manifest)
    flush(staged)
    final, replaced = staged.with_name(name), staged.with_name(REPLACED + name)
    if final.exists():
        final.rename(replaced)
    staged.rename(final)
    flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def read(folder: Path, remedy: str = "") -> Checkpoint:
    """A checkpoint, each of its files compared with the manifest.

    Args:
        folder: of the checkpoint.
        remedy: what can be done where it is damaged, by somebody who asks for no other.

    Raises:
        RunError: naming every file that is not as it was written.
        OSError: the disk cannot be read, which says nothing of the files.
    """
    manifest = folder / MANIFEST
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        sealed = content.pop("sha256")
        if sealed != _digest(content):
            raise ValueError
        step, about, files = content["step"], content["about"], content["files"]
        if folder.name != f"{PREFIX}{step}":
            raise RunError(Problem(str(folder), f"it is the checkpoint of step {step}, under another name", remedy))
    except FileNotFoundError:
        raise RunError(Problem(str(folder), f"no {MANIFEST}: it was not finished", remedy)) from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise RunError(Problem(str(manifest), "it is not as it was written", remedy)) from None
    problems = []
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(Problem(str(path), "the file is gone", remedy))
        elif _entry(path) != entry:
            problems.append(Problem(str(path), "the file is not as it was written", remedy))
    if problems:
        raise RunError(problems)
    return Checkpoint(folder, step, about)


def newest_good(root: Path) -> tuple[Checkpoint | None, list[Problem]]:
    """The newest checkpoint that verifies, if there is one, and what is wrong with newer ones.

    Those are put aside as checkpoint-N.damaged and stay there; they are told of again where no good one is left. What a
    kill left of unfinished writing or removing is cleared away.

    Raises:
        RunError: the disk cannot be read; nothing was put aside.
    """
    for replaced in root.glob(f"{REPLACED}*"):
        final = replaced.with_name(replaced.name.removeprefix(REPLACED))
        if not final.exists():
            replaced.rename(final)
    for prefix in (STAGED, REPLACED, REMOVED):
        for left in root.glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)
    problems: list[Problem] = []
    for step in sorted(steps(root), reverse=True):
        folder = root / f"{PREFIX}{step}"
        try:
            return read(folder), problems
        except OSError as error:
            what = f"it cannot be read: {error.strerror}"
            raise RunError(Problem(str(folder), what, "nothing was changed: try again")) from None
        except RunError as error:
            problems += error.problems
            aside = folder.with_name(folder.name + DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
    told = {path for problem in problems for path in (Path(problem.where), *Path(problem.where).parents)}
    aside_before = (path for path in sorted(root.glob(f"*{DAMAGED}")) if path.with_name(path.stem) not in told)
    return None, [
        *problems,
        *(Problem(str(path), "it is damaged", "remove it once it is not needed") for path in aside_before),
    ]


def steps(root: Path) -> Iterator[int]:
    """Steps of the checkpoints in a folder, verified or not, in no order."""
    for folder in root.glob(f"{PREFIX}*"):
        if folder.name.removeprefix(PREFIX).isdecimal():
            yield int(folder.name.removeprefix(PREFIX))


def rotate(root: Path, keep: int | None, protected: Collection[int] = ()) -> None:
    """Remove all but the newest so many checkpoints; none or no limit removes nothing.

    Args:
        root: of a checkpoint that was just committed: the newest is good.
        keep: at least one stays whatever it says.
        protected: steps that stay too.
    """
    if not keep or keep < 0:
        return
    for step in sorted(steps(root))[:-keep]:
        if step not in protected:
            folder = root / f"{PREFIX}{step}"
            removed = folder.with_name(REMOVED + folder.name)
            folder.rename(removed)  # never half a folder under a checkpoint's name
            shutil.rmtree(removed, ignore_errors=True)


def size(root: Path) -> int:
    """Bytes of the newest checkpoint; 0 if there is none."""
    newest = max(steps(root), default=None)
    folder = root / f"{PREFIX}{newest}"
    return 0 if newest is None else sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_space(root: Path, needed: int) -> None:
    """See that a checkpoint will fit on the disk.

    Args:
        root: where it goes.
        needed: bytes.

    Raises:
        RunError: it will not; nothing was written.
    """
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < needed:
        what = f"a checkpoint takes about {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free"
        raise RunError(Problem(str(root), what, "make room and start the same command again: it goes on"))


def make_durable(folder: Path) -> None:
    """Wait until all files of a folder are on the disk, so that not even a power cut takes one of them."""
    for path in (*sorted(folder.rglob("*")), folder):
        flush(path)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    is_windows = os.name == "nt"
    if is_windows and path.is_dir():  # it opens no folder, and flushes no file that is only read
        return
    handle = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Write a small file that is there whole or as it was before, whatever happens."""
    staged = path.with_name(f"{path.name}.tmp")
    staged.write_text(text, encoding="utf-8")
    flush(staged)
    staged.replace(path)


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":"), sort_keys=True).encode()).hexdigest()
