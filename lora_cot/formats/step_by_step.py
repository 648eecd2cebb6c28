"""A chain of thought that is asked for and not taught: the zero-shot baseline of ICoT (Gao et al. 2024, section 4).

The prompt is `Question: …`, the options, `Let's think step by step.`; the whole text is the answer, in which a benchmark looks
for an option. Its counterpart without reasoning is `answer_only`, whose prompt ends in `Answer:`. Neither shows where the
reasoning ends, so its gold text is the answer alone: to teach reasoning, take a format with stages.
"""

from lora_cot.formats.base import CotFormat, Stage

STEP_BY_STEP = CotFormat(
    "step_by_step",
    (Stage("ANSWER", cue="Let's think step by step.", is_answer=True, tagged=False, criterion="reasons with fewer errors"),),
)
