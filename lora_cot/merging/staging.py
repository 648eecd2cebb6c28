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

from lora_cot.checkpoints.layout import ADAPTER_CONFIG, REPORT
from lora_cot.checkpoints.store import replace_text
from lora_cot.errors import AdapterError, BackboneError, MergeError, Problem, RunError, UnprovenError
from lora_cot.merging.plan import MergePlan

STATE, LOCK, KEPT = "merge.json", "lock", "kept"


def staging_folder(output: Path) -> Path:
    """Where an output grows."""
    return output.with_name(f".{output.name}.merging")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """The folder that an output grows in, for one process alone.

    It outlives whatever stops a merge, for the next call to go on with, a result that was refused among it; but not a merge
    that would end alike, or that came to its end.

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
    return isinstance(error, MergeError | AdapterError | BackboneError) and not isinstance(error, UnprovenError)


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
    replace_text(state, json.dumps(made_of, indent=2))


def keep(model: Path, place: Path, report: Mapping[str, Any]) -> None:
    """Put a model that was chosen, with its report, where the output grows."""
    replace_text(model / REPORT, json.dumps(report, indent=2) + "\n")
    place.parent.mkdir(parents=True, exist_ok=True)
    model.rename(place)


def put_back(place: Path, models: Mapping[str, Path]) -> None:
    """Undo what `keep` did in a call that was stopped after it: the model need not be merged anew.

    Args:
        place: where it was put.
        models: where it came from, by what it was merged onto.
    """
    if (place / REPORT).is_file():
        model = models.get(json.loads((place / REPORT).read_text(encoding="utf-8"))["onto"])
        if model and not model.exists():
            model.parent.mkdir(parents=True, exist_ok=True)
            place.rename(model)
    shutil.rmtree(place, ignore_errors=True)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def fingerprint(plans: Sequence[MergePlan], sections: Mapping[str, Any]) -> dict[str, Any]:
    """What a merge is made of, as far as it decides its bytes: the device too, whose kernels make the 4-bit weights.

    Args:
        plans: of all its models.
        sections: the recipe's keys of the base and of its quantisation.
    """
    import bitsandbytes
    import peft
    import torch
    import transformers

    import lora_cot

    base, adapters = {}, {}
    for plan in plans:
        for step in (step for output in plan.outputs for step in output.steps if step.file):
            if (file := step.file) and str(file.path) not in base:
                about = file.path.stat()
                base[str(file.path)] = [about.st_size, about.st_mtime_ns, hashlib.sha256(file.header).hexdigest()]
        for path in (plan.adapter.file.path, plan.adapter.file.path.with_name(ADAPTER_CONFIG)):
            with path.open("rb") as opened:
                adapters[str(path.resolve())] = hashlib.file_digest(opened, "sha256").hexdigest()
    versions = {package.__name__: package.__version__ for package in (torch, transformers, peft, bitsandbytes, lora_cot)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "form": 2,
        "boot": _boot(),
        "device": device,
        "base": base,
        "adapters": adapters,
        "recipe": dict(sections),
        "versions": versions,
    }


def _boot() -> str:
    """This start of the machine: files that were written before it may not have reached the disk whole."""
    import psutil

    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else str(int(psutil.boot_time()) // 60)


def check_room(folder: Path, plans: Sequence[MergePlan]) -> None:
    """See that the disk has room for the models that are to be written.

    Raises:
        RunError: it has not.
    """
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed, free = sum(plan.size for plan in plans) - there, shutil.disk_usage(folder).free
    if needed > free:
        what = f"{needed / 2**30:.1f} GiB are needed here and {free / 2**30:.1f} GiB are free"
        raise RunError(Problem(str(folder.parent), what, "make room, or set --output"))
