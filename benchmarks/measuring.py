"""What the benchmarks share: what they run on, when that is done, and where its figures go."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path


def device() -> str:
    """What this runs on: the GPU's name, or the number of cores and the processor's."""
    import torch

    return (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{len(os.sched_getaffinity(0))} cores, {processor()}"
    )


def processor() -> str:
    """Its own name, or that of its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def marks(name: str) -> tuple[str, str]:
    """The lines of a page that a benchmark's figures stand between."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def write_between(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put lines between the marks of a Markdown file; what stands around them stays.

    Raises:
        SystemExit: the file has not one pair of marks.
    """
    (begin, end), text = marks(name), page.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SystemExit(f"{page}: the figures go between a line '{begin}' and a line '{end}', and there is no such pair")
    before, after = text[: text.index(begin)], text[text.index(end) :]
    page.write_text("\n".join([f"{before}{begin}", *lines, after]), encoding="utf-8")


def now() -> float:
    """The time in seconds, after all that was started on a GPU is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
