"""A merged model's files, written a block of rows at a time; a file that is finished is not written again.

What the adapter leaves alone is copied from file to file by the system. A file carries its name only when all of it is
written, so that whatever kills the merge, a file under its own name is whole; unless the machine itself stopped.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lora_cot.checkpoints.layout import INDEX
from lora_cot.checkpoints.store import replace_text
from lora_cot.errors import Problem, RunError
from lora_cot.merging.arithmetic import FourBit, Sum, prepare
from lora_cot.merging.checkpoint import TensorFile
from lora_cot.merging.plan import MergePlan, Output, Step, index_text
from lora_cot.merging.proof import check_output, sampled

CHUNK, BUFFER = 64 << 20, 1 << 20
"""Bytes that a job copies, and at once where the system does not do it by itself."""
MOST_THREADS = 8
"""Each has memory of its own."""
PART = ".part"
"""Ends the name of a file that is not finished."""


CHANGED = ".changed.json"
"""Ends the name of a file beside a model's folder: by finished file, the tensors that the adapter changed, and how many values
of each."""

Done = tuple[int, str, int]
"""Bytes that a job wrote; the tensor they are of, and how many of its values are other than what was merged onto."""


def write_weights(plan: MergePlan, folder: Path, four_bit: FourBit | None = None) -> dict[str, int]:
    """Write what a merged model's weights are made of: its files and their index, named as the base's.

    A file is held against PEFT's own merge before it gets its name. Nothing waits for the disk here: see
    `checkpoints.store.make_durable`.

    Args:
        plan: what they hold.
        folder: where to; files in it that an earlier call finished are kept.
        four_bit: how the base was quantised, where the merge is onto that.

    Returns:
        How many values of each changed tensor are other than what was merged onto.

    Raises:
        MergeError: a merged value is not finite, or not what PEFT's own merge makes of it.
        RunError: the disk is full.
    """
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    changed = _read_changed(folder)
    todo = [one for one in plan.outputs if one.name not in changed or not _is_finished(folder / one.name, one)]
    if len(todo) < len(plan.outputs):
        done = len(plan.outputs) - len(todo)
        print(f"going on: {done} of {len(plan.outputs)} files are finished in {folder}", file=sys.stderr)
    options: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "file": sys.stderr}
    often = 0.5 if sys.stderr.isatty() else 10
    total, left = plan.size, sum(output.size for output in todo)
    bar = tqdm(total=total, initial=total - left, desc="merging", mininterval=often, **options)
    with _disk(folder), bar, _workers() as (pool, count):
        for output in todo:
            part = folder / (output.name + PART)
            counts: Counter[str] = Counter()
            unmerged: dict[str, torch.Tensor] = {}
            with part.open("wb", buffering=0) as file:
                bar.update(_put(file, 0, memoryview(output.header)))
                jobs = _jobs(file, output, plan.adapter.file, four_bit, pool, unmerged)
                for size, name, values in _in_order(pool, 2 * count, jobs):
                    bar.update(size)
                    counts[name] += values
            check_output(plan, output, part, unmerged)
            changed[output.name] = dict(+counts)
            replace_text(_changed_file(folder), json.dumps(changed))
            part.rename(folder / output.name)
    if (plan.base / INDEX).is_file():
        replace_text(folder / INDEX, index_text(plan, (plan.base / INDEX).read_text(encoding="utf-8")))
    return {name: count for output in plan.outputs for name, count in changed[output.name].items()}


def _changed_file(folder: Path) -> Path:
    return folder.with_name(folder.name + CHANGED)


def _read_changed(folder: Path) -> dict[str, dict[str, int]]:
    """What an earlier call counted."""
    path = _changed_file(folder)
    found: dict[str, dict[str, int]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


@contextmanager
def _workers() -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Threads that each do whole blocks: torch's own would meet at the end of every operation, and wait for the slowest."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(min(count, MOST_THREADS))
    try:
        yield pool, min(count, MOST_THREADS)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(count)


def _in_order(pool: ThreadPoolExecutor, ahead: int, jobs: Iterator[Callable[[], Done]]) -> Iterator[Done]:
    """What jobs return; no more than so many are begun ahead."""
    begun: deque[Future[Done]] = deque()
    for job in jobs:
        begun.append(pool.submit(job))
        if len(begun) > ahead:
            yield begun.popleft().result()
    yield from (future.result() for future in begun)


def _is_finished(path: Path, output: Output) -> bool:
    """Whether a file is there, of the right length and beginning."""
    if not path.is_file() or path.stat().st_size != output.size:
        return False
    with path.open("rb") as file:
        return file.read(len(output.header)) == output.header


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


def _jobs(
    file: Any,
    output: Output,
    adapter: TensorFile,
    four_bit: FourBit | None,
    pool: ThreadPoolExecutor,
    unmerged: dict[str, torch.Tensor],
) -> Iterator[Callable[[], Done]]:
    """The pieces of a file, a job each. What sampled rows of 4-bit weights stand for goes to `unmerged`."""
    position = len(output.header)
    for run in _runs(output.steps):
        if _is_copied(run[0]):
            yield from _copies(file, position, run)
        else:
            total = prepare(run[0], adapter, four_bit, pool)
            if total.packed:
                unmerged[run[0].name] = total.unmerged(sampled(len(total.source)))
            width = run[0].size // max(len(total.source), 1)
            yield from (partial(_merge, file, position + begin * width, total, begin, end) for begin, end in total.blocks)
        position += sum(step.size for step in run)


def _merge(file: Any, position: int, total: Sum, begin: int, end: int) -> Done:
    rows, changed = total.rows(begin, end)
    return _put(file, position, rows.view(torch.uint8).numpy().data.cast("B")), total.step.name, changed


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


def _put(file: Any, position: int, data: memoryview) -> int:
    """Write all of it to its place; how many bytes that was."""
    size = len(data)
    while len(data):
        if hasattr(os, "pwrite"):
            count = os.pwrite(file.fileno(), data, position)
        else:  # Windows
            with _one_at_a_time:
                file.seek(position)
                count = file.write(data)
        data, position = data[count:], position + count
    return size


_one_at_a_time = threading.Lock()


def _copies(file: Any, position: int, run: list[Step]) -> Iterator[Callable[[], Done]]:
    """Copy the bytes of steps that follow each other, a piece a job."""
    source, last = run[0].file, run[-1].file
    assert source is not None and last is not None
    begin, end = source.entries[run[0].source].start, last.entries[run[-1].source].end
    for start in range(begin, end, CHUNK):
        yield partial(_copy, source, start, min(start + CHUNK, end), file, position + start - begin)


def _copy(source: TensorFile, start: int, end: int, file: Any, position: int) -> Done:
    """Copy bytes: within the system where it can do that, else through a small buffer."""
    done = start
    with source.path.open("rb") as given:
        while done < end:
            count = _copy_some(given, done, end - done, file, position + done - start)
            done += count or _put(file, position + done - start, memoryview(source.mapped)[done : min(done + BUFFER, end)])
    return end - start, "", 0


def _copy_some(given: Any, start: int, count: int, file: Any, position: int) -> int:
    """Bytes that the system has copied by itself; 0 if it cannot: another file system, or no such call."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(given.fileno(), file.fileno(), count, start, position)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return 0
        raise
