"""From a recipe's search.interleave (`recipe/interleave.py`) to how an engine's texts look again (`engines/interleave.py`)."""

from __future__ import annotations

from lora_cot.engines.interleave import Interleave
from lora_cot.errors import Problem, SearchError
from lora_cot.formats import CotFormat
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.selectors import selector


def interleave(cot_format: CotFormat, config: SearchSection) -> Interleave | None:
    """How the texts of a format, or of one pass of it, look at their images; None if they don't.

    Raises:
        SearchError: the format has no stages whose ends could be signals, or no package declares the selector.
    """
    section = config.interleave
    if section is None:
        return None
    marks = (section.signal,) if section.signal else _closings(cot_format, section.at)
    return Interleave(
        section.selector,
        selector(section.selector),
        is_watched=section.selector not in ("random", "boxes"),
        n=section.n or 0,
        cap=section.cap,
        every=section.every,
        marks=marks,
        insert=section.insert,
        layers=tuple(section.layers) if section.layers else None,
        heads=tuple(section.heads) if section.heads else None,
        only_last=section.images == "last" or section.faithful,
        is_faithful=section.faithful,
    )


def _closings(cot_format: CotFormat, at: str | list[str]) -> tuple[str, ...]:
    """The closing tags after which a text looks; none: at lines."""
    if at == "line":
        return ()
    known = {stage.name: cot_format.closing(stage) for stage in cot_format.stages[:-1] if cot_format.closing(stage)}
    if not known:
        what = f"the format {cot_format.name} has no stages that end before the answer"
        raise SearchError(Problem("search.interleave.at", what, "use line, or a format with stages"))
    if wrong := [name for name in at if name not in known] if at != "stage" else []:
        what = f"the format {cot_format.name} has no stage {wrong[0]} that ends before the answer"
        raise SearchError(Problem("search.interleave.at", what, f"allowed: {', '.join(known)}"))
    return tuple(known[name] for name in (known if at == "stage" else at))
