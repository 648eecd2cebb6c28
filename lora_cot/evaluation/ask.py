"""`ask`: one question about one image, and a picture of how the answer was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_cot.checkpoints.opening import Opened, Quantization
from lora_cot.data.demonstrations import load_demonstrations, preface
from lora_cot.data.images import open_image
from lora_cot.engines.opening import AnyOpened, Server, engine_of, open_any
from lora_cot.engines.sight import covered
from lora_cot.errors import Problem, RunError
from lora_cot.evaluation.trace_page import trace_page
from lora_cot.pages import check_writable, image_uri
from lora_cot.recipe.load import change_search
from lora_cot.search.run import answer
from lora_cot.search.trace import Completion, OnStage
from lora_cot.types import Exchange, Sample


def ask(
    model: str | AnyOpened,
    image: str | Path,
    question: str,
    search: dict[str, Any] | None = None,
    on_stage: OnStage = lambda _number, _stage: None,
    trace: Path | None = None,
    demonstrations: Path | None = None,
    quantization: Quantization = "auto",
    server: Server | None = None,
    format_name: str | None = None,
) -> Completion:
    """The model's answer to a question about an image.

    Args:
        model: run, adapter, merged folder or hub id; or what `open_model` or `open_remote` gave.
        image: a file.
        question: as a user would type it.
        search: values by key of the recipe's search section, inner ones dotted.
        on_stage: told of each stage as it is decided.
        trace: a file of all candidates, verdicts and winners: a page if its name ends with .html, `Completion.to_json` if
            with .json.
        demonstrations: a file of worked examples that the prompt shows before the question.
        quantization: with the two after it, how a model that is named is opened; see `open_any`.
        server: what runs it, if not this process.
        format_name: a built-in format to ask in.

    Raises:
        RecipeError: the search has no such key or value.
        DataError: the image cannot be opened; see `load_demonstrations` and `preface`.
        SearchError: the strategy is not defined for the model's format.
        RunError: the trace's name ends with something else, or it cannot be written.
        LoraCotError: see `open_any`.
    """
    check_trace(trace)
    opened = open_any(model, quantization, server, format_name, search or {})
    config = change_search(opened.recipe.search, search or {}, opened.recipe.format)
    cot_format = opened.recipe.format.build().spelled(opened.family.tag_style)
    engine = engine_of(opened, cot_format)
    sample, max_pixels = Sample("question", (Exchange(question),), (Path(image),)), opened.recipe.data.max_pixels
    if demonstrations:
        sample = preface(load_demonstrations(demonstrations, max_pixels), cot_format, max_pixels).before(sample)
    (completion,) = answer(engine, cot_format, [sample], config, on_stage)
    if trace is not None:
        if trace.suffix == ".json":
            text = json.dumps(completion.to_json(), ensure_ascii=False, indent=1) + "\n"
        else:
            pictures = [open_image(one, max_pixels) for one in sample.images]
            areas = []
            if config.interleave and isinstance(opened, Opened):
                areas = [covered(opened.backbone.processor, picture.size) for picture in pictures]
            text = trace_page(question, [image_uri(picture) for picture in pictures], completion, config, areas)
        trace.write_text(text, encoding="utf-8", errors="replace")
    return completion


def check_trace(trace: Path | None) -> None:
    """See that a trace can have this name, and be written.

    Raises:
        RunError: it ends with neither .html nor .json; it cannot be written.
    """
    if trace is None:
        return
    if trace.suffix not in (".html", ".json"):
        raise RunError(Problem(str(trace), "a trace is a page or JSON", "name a file that ends with .html or .json"))
    check_writable(trace)
