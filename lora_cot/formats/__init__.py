"""Formats by name. A recipe can also declare its own stages."""

from lora_cot.errors import Problem, RunError, nearest
from lora_cot.formats.base import CotFormat, Stage
from lora_cot.formats.direct import DIRECT
from lora_cot.formats.four_stage import FOUR_STAGE, FOUR_STAGE_UNTAGGED
from lora_cot.formats.one_stage import ANSWER_FIRST, ANSWER_ONLY, ONE_STAGE
from lora_cot.formats.parser import Event, Parsed, ParsedStage, StageParser
from lora_cot.formats.step_by_step import STEP_BY_STEP
from lora_cot.formats.translate import TRANSLATE
from lora_cot.formats.two_stage import TWO_STAGE

FORMATS = {
    "four_stage": FOUR_STAGE,
    "four_stage_untagged": FOUR_STAGE_UNTAGGED,
    "two_stage": TWO_STAGE,
    "one_stage": ONE_STAGE,
    "answer_first": ANSWER_FIRST,
    "answer_only": ANSWER_ONLY,
    "direct": DIRECT,
    "step_by_step": STEP_BY_STEP,
    "translate": TRANSLATE,
}

__all__ = ["FORMATS", "CotFormat", "Event", "Parsed", "ParsedStage", "Stage", "StageParser", "format_called"]


def format_called(name: str) -> CotFormat:
    """The built-in format of that name.

    Raises:
        RunError: there is none.
    """
    if name not in FORMATS:
        raise RunError(Problem("--format", f"no format '{name}'", nearest(name, FORMATS)))
    return FORMATS[name]
