"""Templates and plots of all reports."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from lora_cot.errors import Problem, RunError

THUMBNAIL = 512
"""Longest side of an image inside a page."""
MARGINS = {"left": 0.13, "right": 0.96, "bottom": 0.15, "top": 0.91}
"""Of a plot over steps: its labels are short, and to measure them takes as long as to draw it."""


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    """As matplotlib names it: the same thing has the same colour in every plot of a page."""


@dataclass(frozen=True)
class Dots:
    """One series of a plot of shares: a dot for each row, with its interval as a line."""

    name: str
    points: Sequence[tuple[float, float, float] | None]
    """Value, and the ends of its interval; None where there is none."""
    colour: str


def check_writable(path: Path) -> None:
    """See that a page can be written there, before anything is done for it; its folder is made.

    Raises:
        RunError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.open("a").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise RunError(Problem(str(path), f"cannot be written: {error.strerror}", "name another file")) from None


def render(template: str, **values: Any) -> str:
    """A page from one of the templates beside this file; every text is escaped."""
    return _templates().get_template(template).render(**values)


@cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("lora_cot.pages", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def image_uri(image: PILImage.Image) -> str:
    """A data URI of the image; small ones are enlarged without smoothing, large ones scaled down."""
    scale = THUMBNAIL / max(image.size)
    if scale < 1:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    elif scale >= 3:
        image = image.resize((image.width * 4, image.height * 4), PILImage.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def line_plot(title: str, x: str, y: str, lines: Sequence[Line]) -> str:
    """An SVG of lines over steps, with a description for screen readers; empty if no line has a point."""
    svg = _drawn("svg", title, x, y, lines)
    ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3g}" for line in lines if line.points)
    return _labelled(svg, f"{title}. {ends}.")


def line_picture(title: str, x: str, y: str, lines: Sequence[Line]) -> bytes:
    """The same as a PNG, for places that show no SVG."""
    return _drawn("png", title, x, y, lines)


def dot_plot(title: str, x: str, rows: Sequence[str], series: Sequence[Dots]) -> str:
    """An SVG of values with their intervals, a row below the other, with a description for screen readers; empty without any.

    Args:
        title: above it.
        x: what the values are.
        rows: their names, from top to bottom.
        series: whose points are in the rows' order, side by side in each row.
    """
    if not rows or not series:
        return ""
    with _figure(0.8 + len(rows) * (0.22 + 0.16 * len(series)), layout="constrained") as (figure, axes):
        for number, one in enumerate(series):
            found = [(place, *point) for place, point in enumerate(one.points) if point is not None]
            places = [place + (number - (len(series) - 1) / 2) * 0.6 / len(series) for place, *_ in found]
            ends = [(value - low, high - value) for _, value, low, high in found]
            sides = [[max(0.0, pair[side]) for pair in ends] for side in (0, 1)]  # of all or none, rounding puts them outside
            values = [value for _, value, *_ in found]
            axes.errorbar(values, places, xerr=sides, fmt="o", markersize=4, color=one.colour, label=one.name, linewidth=1.2)
        axes.set(title=title, xlabel=x, yticks=range(len(rows)), yticklabels=rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-2, 102)  # a dot at an end is whole
        axes.grid(alpha=0.25, axis="x")
        svg = _saved(figure, axes, "svg")
    told = "; ".join(
        f"{one.name}, {row}: {point[0]:.1f} ({point[1]:.1f} to {point[2]:.1f})"
        for one in series
        for row, point in zip(rows, one.points, strict=True)
        if point is not None
    )
    return _labelled(svg, f"{title}, {x}. {told}.")


def _labelled(svg: bytes, label: str) -> str:
    """A drawing to put into a page."""
    from markupsafe import Markup, escape

    text, told = svg.decode(), escape(label)
    return Markup(text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{told}"', 1)) if text else ""  # noqa: S704


@contextmanager
def _figure(height: float, **room: Any) -> Iterator[tuple[Any, Any]]:
    """A figure of that height in inches, and its axes; `room` says how what stands around them is given place."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lora_cot", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(6, height), **room)
        yield figure, axes
        pyplot.close(figure)


def _saved(figure: Any, axes: Any, kind: str) -> bytes:
    """The file of a figure."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()


def _drawn(kind: str, title: str, x: str, y: str, lines: Sequence[Line]) -> bytes:
    lines = [line for line in lines if line.points]
    if not lines:
        return b""
    with _figure(3, gridspec_kw=MARGINS) as (figure, axes):
        for line in lines:
            axes.plot(
                *zip(*line.points, strict=True),
                label=line.name,
                color=line.colour,
                linewidth=1.5,
                marker="." if len(line.points) < 30 else "",
            )
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        return _saved(figure, axes, kind)
