"""`calibrate`: which scores a model's reasonings get, for the search that goes back while they are poor."""

from __future__ import annotations

from typing import Any

from lora_cot.checkpoints.opening import Opened
from lora_cot.evaluation.benchmarks import check_split, find
from lora_cot.evaluation.questions import Wanted
from lora_cot.evaluation.remote import OpenedRemote, engine_of
from lora_cot.recipe.load import change_search
from lora_cot.search import swires
from lora_cot.search.swires import Calibration


def calibrate(
    opened: Opened | OpenedRemote,
    benchmark: str,
    limit: int = 64,
    split: str | None = None,
    data: str | None = None,
    search: dict[str, Any] | None = None,
) -> Calibration:
    """Mean and standard deviation of the scores of one sampled reasoning a question: `search.swires.mean` and `std`.

    Args:
        opened: the model, here or on a server: `open_model`, `open_remote`.
        benchmark: whose questions are asked; their answers are not looked at.
        limit: the first so many of them.
        split: one of its splits, better not the one that is measured later; its first if not given.
        data: where the benchmark's files are.
        search: keys of the recipe's search section to change; its scorer is what is calibrated.

    Raises:
        RunError, DataError: no such benchmark or split, or its questions cannot be read.
        SearchError: fewer than two reasonings could be scored, or the format or scorer does not fit.
    """
    samples = find(benchmark).load(Wanted(check_split(benchmark, split), limit, data)).samples
    config = change_search(opened.recipe.search, search or {}, opened.recipe.format)
    cot_format = opened.recipe.format.build().spelled(opened.family.tag_style)
    if isinstance(opened, Opened):
        opened.backbone.prepare(samples, opened.recipe.data.max_pixels)
    return swires.calibrate(engine_of(opened, cot_format), cot_format, samples, None, config)
