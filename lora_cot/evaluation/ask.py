"""`ask`: one question about one image, and a picture of how the answer was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_cot.checkpoints.opening import Opened
from lora_cot.data.images import open_image
from lora_cot.evaluation.remote import OpenedRemote, engine_of
from lora_cot.pages import image_uri, render
from lora_cot.recipe.load import change_search
from lora_cot.search.strategies import OnStage, answer
from lora_cot.search.trace import Completion
from lora_cot.types import Exchange, Sample


def ask(
    opened: Opened | OpenedRemote,
    image: Path,
    question: str,
    search: dict[str, Any] | None = None,
    on_stage: OnStage = lambda _number, _stage: None,
    trace: Path | None = None,
) -> Completion:
    """The model's answer to a question about an image.

    Args:
        opened: the model, here or on a server: `open_model`, `open_remote`.
        image: a file.
        question: as a user would type it.
        search: values by key of the recipe's search section, inner ones dotted.
        on_stage: told of each stage as it is decided.
        trace: an HTML file of all candidates, verdicts and winners.

    Raises:
        RecipeError: the search has no such key or value.
        DataError: the image cannot be opened.
        SearchError: the strategy is not defined for the model's format.
    """
    config = change_search(opened.recipe.search, search or {}, opened.recipe.format)
    cot_format = opened.recipe.format.build().spelled(opened.family.tag_style)
    engine = engine_of(opened, cot_format)
    sample = Sample("question", (Exchange(question),), (image,))
    (completion,) = answer(engine, cot_format, [sample], config, on_stage)
    if trace is not None:
        page = render(
            "trace.html",
            title="How the answer was found",
            question=question,
            images=[image_uri(open_image(image, opened.recipe.data.max_pixels))],
            completion=completion,
            strategy=config.strategy,
        )
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text(page, encoding="utf-8")
    return completion
