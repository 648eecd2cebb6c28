"""Multimodal-CoT's ablations in one pass (Zhang et al. 2023, arXiv 2302.00923, tables 2 and 4), with the paper's prompts.

`answer_only` is its QCM→A, `one_stage` its QCM→LEA (reason, then answer), `answer_first` its QCM→ALE. Where we differ:
the two parts stand between tags, so that they are told apart in any text, where the released code joins them with
`The answer is` and `BECAUSE:` and looks for a letter in the whole.
"""

from dataclasses import replace

from lora_cot.formats.base import CotFormat
from lora_cot.formats.two_stage import TWO_STAGE

RATIONALE, ANSWER = TWO_STAGE.stages

ANSWER_ONLY = CotFormat("answer_only", (replace(ANSWER, tagged=False),))
ONE_STAGE = CotFormat("one_stage", (RATIONALE, replace(ANSWER, cue="")))
ANSWER_FIRST = CotFormat("answer_first", (replace(ANSWER, cue=RATIONALE.cue), replace(RATIONALE, cue="")))
