"""LLaVA-CoT's four stages (Xu et al. 2024, arXiv 2411.10440, section 3.1). The tags are plain text, not new tokens."""

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
