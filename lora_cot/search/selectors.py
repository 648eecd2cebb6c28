"""Which patches a text is shown again. A selector takes one `Look` and gives numbers of patches that are open in it.

`attention` takes those that the text's last token attends to most (ICoT, Gao et al. 2024, section 3.2), `random` any, as
the control, and `boxes` those inside pixel boxes that come with the sample, as a detector would give them. A function of
one's own is named in a recipe as `selector: package.module:function`, if an installed package declares it:

    [project.entry-points."lora_cot.selectors"]
    mine = "package.module:function"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_cot.engines.looking import Look, Select
from lora_cot.errors import DataError, Problem
from lora_cot.search.installed import installed

GROUP = "lora_cot.selectors"
"""Entry points of functions that a recipe may name."""


def attention(look: Look) -> list[int]:
    """Those of most weight; of equals the lowest numbers."""
    assert look.weights is not None
    weights = look.weights.tolist()
    return sorted(look.open, key=lambda number: (-weights[number], number))[: look.n]


def at_random(look: Look) -> list[int]:
    """Any of them."""
    return look.draws.sample(look.open, min(look.n, len(look.open)))


def boxes(look: Look) -> list[int]:
    """Those whose centre lies in a box of the sample; of too many, evenly spaced ones.

    `meta["boxes"]` is a list of `{"image": 0, "box": [left, top, right, bottom]}`, in pixels of the upright image, right and
    bottom outside; the image may be left out, and is the first then. None: there is no look.

    Raises:
        DataError: it is something else.
    """
    given = [_box(look.sample.id, one) for one in _listed(look.sample.meta.get("boxes", ()))]
    inside = [number for number in look.open if any(_holds(look, one, number) for one in given)]
    count = min(look.n, len(inside))
    return [inside[(2 * place + 1) * len(inside) // (2 * count)] for place in range(count)]


Box = tuple[int, Sequence[float]]


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _box(row: str, value: Any) -> Box:
    box = value.get("box") if isinstance(value, dict) else None
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(isinstance(edge, int | float) for edge in box):
        what, remedy = f"{value!r} is no box", '{"image": 0, "box": [left, top, right, bottom]}, in pixels'
        raise DataError(Problem(f"{row} · boxes", what, remedy))
    return value.get("image", 0), box


def _holds(look: Look, one: Box, number: int) -> bool:
    image, (left, top, right, bottom) = one
    x, y = look.centre(number)
    return image == look.sight.patches[number].image and left <= x < right and top <= y < bottom


SELECTORS: dict[str, Select] = {"attention": attention, "random": at_random, "boxes": boxes}
"""Selectors by the name a recipe gives them."""


def selector(name: str) -> Select:
    """The selector of that name.

    Raises:
        SearchError: no installed package declares it.
    """
    return SELECTORS.get(name) or installed(GROUP, "search.interleave.selector", name)
