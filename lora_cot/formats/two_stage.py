"""Multimodal-CoT's two stages (Zhang et al. 2023, arXiv 2302.00923, section 4): a rationale, then an answer that sees it.

Each stage is generated in a pass of its own by an adapter of its own. Data in the four-stage format serve too: what
comes before the conclusion is the rationale.
"""

from lora_cot.formats.base import CotFormat, Stage

TWO_STAGE = CotFormat(
    "two_stage",
    (
        Stage(
            "RATIONALE",
            cue="Solution:",
            made_of=("SUMMARY", "CAPTION", "REASONING"),
            criterion="reasons with fewer errors",
            max_new_tokens=1024,
        ),
        Stage("ANSWER", cue="Answer:", made_of=("CONCLUSION",), is_answer=True, max_new_tokens=256),
    ),
    split=True,
)
