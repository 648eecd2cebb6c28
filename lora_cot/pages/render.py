"""Templates and plots of all reports."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image as PILImage

THUMBNAIL = 512
"""Longest side of an image inside a page."""


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    """As matplotlib names it: the same thing has the same colour in every plot of a page."""


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
    from markupsafe import Markup, escape

    svg = _drawn("svg", title, x, y, lines).decode()
    if not svg:
        return ""
    ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3g}" for line in lines if line.points)
    label = escape(f"{title}. {ends}.")
    return Markup(svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1))  # noqa: S704


def line_picture(title: str, x: str, y: str, lines: Sequence[Line]) -> bytes:
    """The same as a PNG, for places that show no SVG."""
    return _drawn("png", title, x, y, lines)


def _drawn(kind: str, title: str, x: str, y: str, lines: Sequence[Line]) -> bytes:
    lines = [line for line in lines if line.points]
    if not lines:
        return b""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lora_cot", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
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
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
        pyplot.close(figure)
    return buffer.getvalue()
