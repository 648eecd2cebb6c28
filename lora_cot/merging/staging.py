"""The folder that a merged model grows in, beside the one that it becomes."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_cot.errors import Problem, RunError
from lora_cot.merging.plan import Plan
from lora_cot.merging.stream import write_safely

STATE, LOCK = "merge.json", "lock"


def staging_folder(output: Path) -> Path:
    """Where an output grows."""
    return output.with_name(f".{output.name}.merging")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """The folder that an output grows in, for one process alone.

    It outlives whatever stops a merge, for the next call to go on with, but not a merge whose result was refused or that
    came to its end.

    Raises:
        RunError: the output is there already, or another process is writing it.
    """
    from filelock import FileLock, Timeout

    folder, there = staging_folder(output), output.exists()
    if not there:
        folder.mkdir(parents=True, exist_ok=True)
    elif not folder.exists():
        raise _exists(output)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(Problem(str(output), "another process is merging into this folder", "wait for it")) from None
    if there:  # a merge was killed between its last step and tidying up
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
        raise _exists(output)
    try:
        yield folder
    except BaseException as error:
        if _is_final(error) or not (folder / STATE).exists():
            _clear(folder)
        raise
    else:
        _clear(folder)
    finally:
        lock.release()
        if not (folder / STATE).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _exists(output: Path) -> RunError:
    return RunError(Problem(str(output), "the output folder exists already", "remove it, or set --output"))


def _is_final(error: BaseException) -> bool:
    """Whether calling it again would end alike."""
    from lora_cot.errors import AdapterError, BackboneError, MergeError

    return isinstance(error, MergeError | AdapterError | BackboneError)


def begin(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Keep what an earlier call left in a staging folder if it was made of the same things; take it away if not."""
    state = folder / STATE
    if state.is_file():
        try:
            same = json.loads(state.read_text(encoding="utf-8")) == made_of
        except ValueError:
            same = False
        if same:
            return
        print(
            f"{folder} is of another adapter, base, version or start of the machine: the merge begins again", file=sys.stderr
        )
    _clear(folder)
    write_safely(state, json.dumps(made_of, indent=2))


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def fingerprint(plans: Sequence[Plan], quantization: Any) -> dict[str, Any]:
    """What a merge is made of, as far as it decides its bytes.

    Args:
        plans: of all its models.
        quantization: the recipe's keys, with the precision.
    """
    import bitsandbytes
    import peft
    import torch
    import transformers

    base, adapters = {}, {}
    for plan in plans:
        for step in (step for output in plan.outputs for step in output.steps if step.file):
            if (file := step.file) and str(file.path) not in base:
                about = file.path.stat()
                base[str(file.path)] = [about.st_size, about.st_mtime_ns, hashlib.sha256(file.header).hexdigest()]
        for path in (plan.adapter.file.path, plan.adapter.file.path.with_name("adapter_config.json")):
            with path.open("rb") as opened:
                adapters[str(path.resolve())] = hashlib.file_digest(opened, "sha256").hexdigest()
    versions = {package.__name__: package.__version__ for package in (torch, transformers, peft, bitsandbytes)}
    return {"form": 1, "boot": _boot(), "base": base, "adapters": adapters, "quantization": quantization, "versions": versions}


def _boot() -> str:
    """This start of the machine: files that were written before it may not have reached the disk whole."""
    import psutil

    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else str(int(psutil.boot_time()) // 60)


def check_room(folder: Path, plans: Sequence[Plan]) -> None:
    """See that the disk has room for the models that are to be written.

    Raises:
        RunError: it has not.
    """
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed, free = sum(plan.size for plan in plans) - there, shutil.disk_usage(folder).free
    if needed > free:
        what = f"{needed / 2**30:.1f} GiB are needed here and {free / 2**30:.1f} GiB are free"
        raise RunError(Problem(str(folder.parent), what, "make room, or set --output"))
