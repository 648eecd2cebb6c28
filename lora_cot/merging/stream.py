"""A merged model's files, written a block of rows at a time; a file that is finished is not written again.

What the adapter leaves alone is copied from file to file by the system. A file carries its name only when all of it is on
the disk, so that whatever kills the merge, a file under its own name is whole.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lora_cot.errors import Problem, RunError
from lora_cot.merging.arithmetic import FourBit, merged_blocks
from lora_cot.merging.base import INDEX
from lora_cot.merging.checkpoint import TensorFile
from lora_cot.merging.plan import Output, Plan, Step, index_text

CHUNK = 32 << 20
"""Bytes that are copied at once."""
PART = ".part"
"""Ends the name of a file that is not finished."""


def write_weights(plan: Plan, folder: Path, four_bit: FourBit | None = None) -> None:
    """Write what a merged model's weights are made of: its files and their index, named as the base's.

    Args:
        plan: what they hold.
        folder: where to; files in it that an earlier call finished are kept.
        four_bit: how the base was quantised, where the merge is onto that.

    Raises:
        MergeError: a merged value is not finite.
        RunError: the disk is full.
    """
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    todo = [output for output in plan.outputs if not _is_finished(folder / output.name, output)]
    if len(todo) < len(plan.outputs):
        done = len(plan.outputs) - len(todo)
        print(f"going on: {done} of {len(plan.outputs)} files are finished in {folder}", file=sys.stderr)
    options: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "file": sys.stderr}
    often = 0.5 if sys.stderr.isatty() else 10
    total, left = plan.size, sum(output.size for output in todo)
    with (
        _disk(folder),
        tqdm(total=total, initial=total - left, desc="merging", mininterval=often, **options) as bar,
        ThreadPoolExecutor(1) as writer,
        ThreadPoolExecutor(1) as sealer,
    ):
        sealed = []
        for output in todo:
            part = folder / (output.name + PART)
            with part.open("wb", buffering=0) as file:
                _write(file, output, plan.adapter.file, four_bit, writer, bar)
            sealed.append(sealer.submit(_seal, part))  # waiting for the disk goes on beside the next file's sums
        for file_is_safe in sealed:
            file_is_safe.result()
    if (plan.base / INDEX).is_file():
        write_safely(folder / INDEX, index_text(plan, (plan.base / INDEX).read_text(encoding="utf-8")))


def write_safely(path: Path, text: str) -> None:
    """A small file that is there whole or not at all."""
    part = path.with_name(path.name + PART)
    part.write_text(text, encoding="utf-8")
    _seal(part)


def _is_finished(path: Path, output: Output) -> bool:
    """Whether a file is there, of the right length and beginning."""
    if not path.is_file() or path.stat().st_size != output.size:
        return False
    with path.open("rb") as file:
        return file.read(len(output.header)) == output.header


def _seal(part: Path) -> None:
    """Give a file its name once its bytes are on the disk."""
    _sync(part)
    part.rename(part.with_name(part.name.removesuffix(PART)))
    _sync(part.parent)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Say it in our words if the disk is full; what is finished stays."""
    try:
        yield
    except OSError as error:
        for part in folder.glob(f"*{PART}"):
            part.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        remedy = "make room and call it again: it goes on with the files that are finished"
        raise RunError(Problem(str(folder), "the disk is full", remedy)) from None


def _write(
    file: Any, output: Output, adapter: TensorFile, four_bit: FourBit | None, writer: ThreadPoolExecutor, bar: Any
) -> None:
    """All bytes of a file; while a block is written, the next is computed."""
    _put(file, memoryview(output.header))
    bar.update(len(output.header))
    for run in _runs(output.steps):
        if run[0].change is None and not run[0].quantized:
            _copy(file, run, bar)
            continue
        (step,) = run
        pending: Future[int] | None = None
        for block in merged_blocks(step, adapter, four_bit):
            if pending is not None:
                bar.update(pending.result())
            pending = writer.submit(_put, file, block.view(torch.uint8).numpy().data.cast("B"))
        if pending is not None:
            bar.update(pending.result())


def _runs(steps: tuple[Step, ...]) -> Iterator[list[Step]]:
    """Steps in order, those together whose bytes are copied and lie in one piece."""
    run: list[Step] = []
    for step in steps:
        if run and not (_is_copied(run[-1]) and _is_copied(step) and _follows(run[-1], step)):
            yield run
            run = []
        run.append(step)
    if run:
        yield run


def _is_copied(step: Step) -> bool:
    return step.change is None and not step.quantized


def _follows(first: Step, second: Step) -> bool:
    if first.file is None or second.file is None or first.file.path != second.file.path:
        return False
    return first.file.entries[first.source].end == second.file.entries[second.source].start


def _put(file: Any, data: memoryview) -> int:
    """Write all of it; how many bytes that was."""
    size = len(data)
    while len(data):
        data = data[file.write(data) :]
    return size


def _copy(file: Any, run: list[Step], bar: Any) -> None:
    """Copy the bytes of steps that follow each other: within the system where it can do that, else a piece at a time."""
    source = run[0].file
    assert source is not None and run[-1].file is not None
    position, end = source.entries[run[0].source].start, run[-1].file.entries[run[-1].source].end
    with source.path.open("rb") as given:
        while position < end:
            count = _copy_some(given, file, position, min(CHUNK, end - position))
            if not count:  # another file system, or a system without such a call
                count = _put(file, memoryview(source.mapped)[position : min(position + CHUNK, end)])
            position += count
            bar.update(count)


def _copy_some(given: Any, file: Any, position: int, count: int) -> int:
    """Bytes that the system has copied by itself; 0 if it cannot."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(given.fileno(), file.fileno(), count, position)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return 0
        raise
