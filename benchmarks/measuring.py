"""What the benchmarks share: their command lines, what they run on, trained models, intervals, and where figures go."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def command_line(text: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a script's own text, with the option that all of them have."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def tell(report: Mapping[str, Any], as_json: bool, lines: Sequence[str] | None = None) -> None:
    """Print what was measured: as JSON, or as these lines, else a line for each figure."""
    if lines is None:
        width = max(map(len, report)) + 2
        shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in report.items()}
        lines = [f"{name:<{width}}{value}" for name, value in shown.items()]
    print(json.dumps(report) if as_json else "\n".join(lines))


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """What was measured as report.json in a folder."""
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def trained(path: Path, changes: Sequence[str] = ()) -> Path:
    """The run of a recipe with these changes; it is trained only if it is not there."""
    from lora_cot.checkpoints.folders import is_finished, run_folder
    from lora_cot.recipe import load_recipe
    from lora_cot.training.run import train

    recipe = load_recipe(path, changes)
    folder = run_folder(recipe)
    if not ((folder / "recipe.yaml").is_file() and is_finished(folder, recipe)):
        print(f"training {recipe.name}", file=sys.stderr, flush=True)
        train(recipe)
    return folder


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean with Student's 95 % interval; without one for a single value."""
    mean = statistics.mean(values)
    half = student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"values": list(values), "mean": mean, "interval": None if half is None else [mean - half, mean + half]}


def p_value(values: Sequence[float]) -> float | None:
    """How likely a mean as far from 0 is by chance, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    return 1 - within(abs(mean) / error, len(values) - 1) if error else float(mean == 0)


def student(freedom: int, share: float = 0.95) -> float:
    """The bound that so much of Student's t stays within, by degrees of freedom."""
    low, high = 0.0, 1.0
    while within(high, freedom) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < share else (low, middle)
    return high


def within(bound: float, freedom: int) -> float:
    """How much of Student's t lies between -bound and bound: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle, odd = math.atan(bound / math.sqrt(freedom)), freedom % 2
    term = total = math.cos(angle) ** odd if freedom > 1 else 0.0
    for power in range(odd + 2, freedom - 1, 2):
        term *= (power - 1) / power * math.cos(angle) ** 2
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def points(value: Mapping[str, Any]) -> str:
    """A mean with its interval, in points of a hundred."""
    if value["interval"] is None:
        return f"{100 * value['mean']:.1f}"
    return f"{100 * value['mean']:.1f} {bounds(value['interval'])}"


def bounds(interval: Sequence[float]) -> str:
    """An interval, in points of a hundred."""
    return f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def difference(first: Any, second: Any) -> dict[str, Any]:
    """How much more often the first is right, with the paired bootstrap's 95 % interval over questions.

    Args:
        first: (questions,) as numpy has them, the share of the seeds in which it was right.
        second: the same of the other, question by question.
    """
    from lora_cot.evaluation.metrics import bootstrap

    apart = first - second
    return {"difference": float(apart.mean()), "interval": list(bootstrap(apart))}


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
