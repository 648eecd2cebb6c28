"""`calibrate`: which scores a model's reasonings get, for the search that goes back while they are poor."""

from __future__ import annotations

from typing import Any

from lora_cot.checkpoints.opening import Opened, Quantization
from lora_cot.engines.opening import AnyOpened, Server, engine_of, open_any
from lora_cot.evaluation.benchmarks import check_split, find
from lora_cot.evaluation.questions import Wanted
from lora_cot.recipe.load import change_search
from lora_cot.search import swires
from lora_cot.search.swires import Calibration


def calibrate(
    model: str | AnyOpened,
    benchmark: str,
    limit: int = 64,
    split: str | None = None,
    data: str | None = None,
    search: dict[str, Any] | None = None,
    quantization: Quantization = "auto",
    server: Server | None = None,
    format_name: str | None = None,
) -> Calibration:
    """Mean and standard deviation of the scores of one sampled reasoning a question: `search.swires.mean` and `std`.

    Args:
        model: run, adapter, merged folder or hub id; or what `open_model` or `open_remote` gave.
        benchmark: whose questions are asked; their answers are not looked at.
        limit: the first so many of them.
        split: one of its splits, better not the one that is measured later; its first if not given.
        data: where the benchmark's files are.
        search: keys of the recipe's search section to change; its scorer is what is calibrated.
        quantization: with the two after it, how a model that is named is opened; see `open_any`.
        server: what runs it, if not this process.
        format_name: a built-in format to ask in.

    Raises:
        RunError, DataError: no such benchmark or split, or its questions cannot be read.
        LoraCotError: see `open_any`.
        SearchError: fewer than two reasonings could be scored, or the format or scorer does not fit.
    """
    split = check_split(benchmark, split)  # before a model is loaded for nothing
    opened = open_any(model, quantization, server, format_name, search or {})
    samples = find(benchmark).load(Wanted(split, limit, data)).samples
    config = change_search(opened.recipe.search, search or {}, opened.recipe.format)
    cot_format = opened.recipe.format.build().spelled(opened.family.tag_style)
    if isinstance(opened, Opened):
        opened.backbone.prepare(samples, opened.recipe.data.max_pixels)
    return swires.calibrate(engine_of(opened, cot_format), cot_format, samples, None, config)
