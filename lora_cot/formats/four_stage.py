"""LLaVA-CoT's four stages (Xu et al. 2024, arXiv 2411.10440, section 3.1). The tags are plain text, not new tokens.

`four_stage_untagged` is its ablation without structured tags: the same texts, a line break in place of the marks. Nothing says
then where the conclusion begins. It is read as the last line: of 471 complete answers of the published model, written
without their tags, that gives back all conclusions, and the last sentence 462.
"""

from lora_cot.formats.base import CotFormat, Stage

FOUR_STAGE = CotFormat(
    "four_stage",
    (
        Stage("SUMMARY", criterion="better outlines the approach to the question"),
        Stage("CAPTION", criterion="describes the image with fewer errors"),
        Stage("REASONING", criterion="reasons with fewer errors", max_new_tokens=1024),
        Stage("CONCLUSION", is_answer=True, criterion="better answers the question", max_new_tokens=256),
    ),
)

FOUR_STAGE_UNTAGGED = CotFormat(
    "four_stage_untagged",
    (
        Stage(
            "TEXT",
            is_answer=True,
            tagged=False,
            ends_in_answer=True,
            criterion="reasons with fewer errors",
            made_of=tuple(stage.name for stage in FOUR_STAGE.stages),
            max_new_tokens=sum(stage.max_new_tokens for stage in FOUR_STAGE.stages),
        ),
    ),
)
