"""What `search_curve.py` measured as figures, tables and a picture."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import difference, marks, write_between  # beside this file
from PIL import Image

from lora_cot.evaluation.metrics import Share

BEGIN, END = marks("search_curve")
PICTURE = "search_curve.png"
PAIRS = (
    ("stage_beam", "sample"),
    ("stage_beam, self-judge", "sample"),
    ("stage_beam", "greedy"),
    ("stage_beam", "best_of_n"),
    ("stage_beam", "majority"),
    ("stage_beam, self-judge", "stage_beam"),
    ("best_of_n, self-judge", "best_of_n"),
)
"""Arms that are held against each other at the same N, question by question; sample and greedy have one text."""
COSTS = {"tokens": "tokens_per_question", "judge_prompts": "judge_prompts_per_question", "seconds": "seconds_per_question"}
STYLES: dict[str, tuple[str, str, str]] = {
    "greedy": ("black", "*", "none"),
    "sample": ("black", "o", "none"),
    "majority": ("tab:green", "s", "-"),
    "majority, weighted": ("tab:olive", "s", "-"),
    "best_of_n": ("tab:blue", "^", "-"),
    "best_of_n, self-judge": ("tab:blue", "^", "--"),
    "sentence_beam": ("tab:purple", "D", "-"),
    "stage_beam": ("tab:red", "o", "-"),
    "stage_beam, self-judge": ("tab:red", "o", "--"),
    "adaptive": ("tab:cyan", "v", "-"),
    "swires": ("tab:orange", "P", "-"),
}
"""Colour, marker and line of each arm; what the model judges itself is dashed."""
TICKS = {"tokens": (100, 200, 400, 800), "seconds": (0.02, 0.05, 0.1, 0.2, 0.5, 1)}
LABELS = {"tokens": "generated tokens", "seconds": "seconds"}


def summarise(cells: Sequence[tuple[Any, Mapping[str, Any]]]) -> dict[str, Any]:
    """Figures over the seeds of each model, arm and N, and how far arms are apart.

    Args:
        cells: (cell, what its evaluation gave): see `search_curve.py`.

    Returns:
        `points`: for each, share of right answers with Wilson's interval for as many questions as were asked once, which
        several seeds can only make too wide; costs a question. `differences`: see `difference`.
    """
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for cell, result in cells:
        groups.setdefault((cell.model, cell.arm, cell.candidates), []).append(result)
    rates = {key: _rates(results) for key, results in groups.items()}
    points = [_point(*key, results, rates[key]) for key, results in groups.items()]
    counts = sorted({count for _, _, count in groups if count > 1})
    differences = []
    for model in dict.fromkeys(model for model, _, _ in groups):
        for count in counts:
            for first, second in PAIRS:
                one, other = (rates.get((model, arm, _count(arm, count))) for arm in (first, second))
                if one is not None and other is not None:
                    where = {"model": model, "candidates": count, "first": first, "second": second}
                    differences.append(where | difference(one, other))
    return {"points": points, "differences": differences}


def _count(arm: str, count: int) -> int:
    return 1 if arm in ("sample", "greedy") else count


def _rates(results: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(questions,) share of the seeds in which each was answered right."""
    names = list(results[0]["right"])
    return np.array([[one["right"][name] for name in names] for one in results]).mean(0)


def _point(model: str, arm: str, count: int, results: Sequence[Mapping[str, Any]], rates: np.ndarray) -> dict[str, Any]:
    share = Share(float(rates.sum()), len(rates))
    costs = {name: statistics.mean(one["report"][key] for one in results) for name, key in COSTS.items()}
    where = {"model": model, "arm": arm, "candidates": count, "seeds": len(results)}
    return {**where, "accuracy": share.value, "interval": share.interval, **costs}


def table(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: a row for each arm and N of one model."""
    rows = ["| strategy | N | right [95 %] | tokens | judge prompts | seconds |", "|---|---|---|---|---|---|"]
    for one in points:
        low, high = one["interval"]
        right = f"{100 * one['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        costs = f"{one['tokens']:.0f} | {one['judge_prompts']:.1f} | {one['seconds']:.3f}"
        rows.append(f"| {_code(one['arm'])} | {one['candidates']} | {right} | {costs} |")
    return rows


def differences(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: a row for each pair, a column for each N; in bold what is outside its interval."""
    counts = sorted({one["candidates"] for one in found})
    rows = ["| points between | " + " | ".join(f"N = {count}" for count in counts) + " |", "|---" * (1 + len(counts)) + "|"]
    for first, second in dict.fromkeys((one["first"], one["second"]) for one in found):
        told = {one["candidates"]: _apart(one) for one in found if (one["first"], one["second"]) == (first, second)}
        cells = " | ".join(told.get(count, "·") for count in counts)
        rows.append(f"| {_code(first)} − {_code(second)} | {cells} |")
    return rows


def _apart(one: Mapping[str, Any]) -> str:
    low, high = (100 * bound for bound in one["interval"])
    told = f"{100 * one['difference']:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")
    return f"**{told}**" if low > 0 or high < 0 else told


def _code(arm: str) -> str:
    name, _, how = arm.partition(", ")
    return f"`{name}`" + f", {how}" * bool(how)


def page_lines(report: Mapping[str, Any]) -> list[str]:
    """Both tables of each model, in Markdown."""
    seeds = f"{len(report['seeds'])} seed" + "s" * (len(report["seeds"]) > 1)
    text = [
        f"{report['questions']} test questions, {seeds}; tokens, judge prompts and seconds a question; {report['device']}."
    ]
    for model in dict.fromkeys(one["model"] for one in report["points"]):
        text += ["", f"**{model[0].upper() + model[1:]}**", "", *table(_of(report["points"], model))]
        if found := _of(report["differences"], model):
            text += ["", *differences(found)]
    return text


def _of(rows: Sequence[Mapping[str, Any]], model: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["model"] == model]


def write_docs(report: Mapping[str, Any], page: Path) -> None:
    """The tables between their marks in a Markdown file, and the picture beside it.

    Raises:
        SystemExit: the file has not one pair of markers.
    """
    write_between(page, "search_curve", page_lines(report))
    draw(report, page.with_name(PICTURE))


def draw(report: Mapping[str, Any], path: Path) -> None:
    """A PNG: a column for each model; accuracy and judge prompts over generated tokens, and accuracy over seconds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(one["model"] for one in report["points"]))
    grid = {"height_ratios": (4, 1, 4), "hspace": 0.05}
    with pyplot.rc_context({"font.size": 9}):
        figure = pyplot.figure(figsize=(1.5 + 4.5 * len(models), 9), layout="constrained")
        axes = figure.subplots(3, len(models), sharey="row", squeeze=False, gridspec_kw=grid)
        for column, model in zip(axes.T, models, strict=True):
            points = _of(report["points"], model)
            column[1].sharex(column[0])
            for panel, x, y in zip(column, ("tokens", "tokens", "seconds"), ("right", "judge_prompts", "right"), strict=True):
                _curves(panel, points, x, y)
            column[0].set_title(model)
            half = statistics.mean(high - low for low, high in (one["interval"] for one in points)) / 2
            told = f"95 % interval of a point: about ±{100 * half:.0f}"
            column[0].text(0.98, 0.03, told, transform=column[0].transAxes, ha="right", fontsize=8)
        for panel, label in zip(axes[:, 0], ("right answers (%)", "judge\nprompts", "right answers (%)"), strict=True):
            panel.set_ylabel(label)
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2 + len(models), frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        pyplot.close(figure)
    with Image.open(buffer) as image:  # a palette takes a quarter of the bytes
        image.convert("RGB").quantize(128).save(path, optimize=True)


def _curves(panel: Any, points: Sequence[Mapping[str, Any]], x: str, y: str) -> None:
    """A line for each arm from N = 1 on, which is another's where the arm has none of its own; a judge's alone of prompts."""
    from matplotlib.ticker import FixedLocator, NullLocator

    first = {one["arm"]: one for one in points if one["candidates"] == 1}
    for arm in dict.fromkeys(one["arm"] for one in points):
        own = sorted((one for one in points if one["arm"] == arm), key=lambda one: one["candidates"])
        start = first.get(arm.split(",")[0], first.get("sample"))
        line = own if arm in first or start is None else [start, *own]
        colour, marker, style = STYLES[arm]
        alone = arm in ("sample", "greedy")
        look = {"color": colour, "marker": marker, "linestyle": style, "ms": 9 if alone else 5, "lw": 1.3, "label": arm}
        if y == "right" or "self-judge" in arm:
            heights = [100 * one["accuracy"] if y == "right" else one[y] for one in line]
            panel.plot([one[x] for one in line], heights, zorder=3 + alone, **look)
    panel.set(xscale="log", xlabel="" if (x, y) == ("tokens", "right") else f"{LABELS[x]} a question")
    panel.xaxis.set_major_locator(FixedLocator(TICKS[x]))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
