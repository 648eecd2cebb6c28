"""`ask`: one question about one image, and a picture of how the answer was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_cot.checkpoints.opening import Opened
from lora_cot.data.images import open_image
from lora_cot.evaluation.remote import OpenedRemote, engine_of
from lora_cot.evaluation.trace_page import trace_page
from lora_cot.pages import image_uri
from lora_cot.recipe.schema import SearchSection
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
        search: keys of the recipe's search section to change.
        on_stage: told of each stage as it is decided.
        trace: an HTML file of all candidates, verdicts and winners.

    Raises:
        DataError: the image cannot be opened.
        SearchError: the strategy is not defined for the model's format.
    """
    config = SearchSection.model_validate({**opened.recipe.search.model_dump(), **(search or {})})
    cot_format = opened.recipe.format.build().spelled(opened.family.tag_style)
    engine = engine_of(opened, cot_format)
    sample = Sample("question", (Exchange(question),), (image,))
    (completion,) = answer(engine, cot_format, [sample], config, on_stage)
    if trace is not None:
        picture = image_uri(open_image(image, opened.recipe.data.max_pixels))
        page = trace_page(question, [picture], completion, config)
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text(page, encoding="utf-8")
    return completion
