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
from lora_cot.types import Sample

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
    given = [_box(look.sample, one) for one in _listed(look.sample.meta.get("boxes", ()))]
    inside = [number for number, centre in look.centres().items() if any(_holds(one, centre) for one in given)]
    count = min(look.n, len(inside))
    return [inside[(2 * place + 1) * len(inside) // (2 * count)] for place in range(count)]


Box = tuple[int, Sequence[float]]


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _box(sample: Sample, value: Any) -> Box:
    box, image = (value.get("box"), value.get("image", 0)) if isinstance(value, dict) else (None, 0)
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(isinstance(edge, int | float) for edge in box):
        what, remedy = f"{value!r} is no box", '{"image": 0, "box": [left, top, right, bottom]}, in pixels'
        raise DataError(Problem(f"{sample.id} · boxes", what, remedy))
    count = len(sample.own_images)
    if type(image) is not int or not 0 <= image < count:
        what = f"{value!r} is on no image of the question"
        raise DataError(Problem(f"{sample.id} · boxes", what, f"image is 0 to {count - 1}"))
    return image + sample.preface.count(None), box


def _holds(one: Box, centre: tuple[int, float, float]) -> bool:
    image, (left, top, right, bottom) = one
    number, x, y = centre
    return image == number and left <= x < right and top <= y < bottom


SELECTORS: dict[str, Select] = {"attention": attention, "random": at_random, "boxes": boxes}
"""Selectors by the name a recipe gives them."""


def selector(name: str) -> Select:
    """The selector of that name.

    Raises:
        SearchError: no installed package declares it.
    """
    return SELECTORS.get(name) or installed(GROUP, "search.interleave.selector", name)
