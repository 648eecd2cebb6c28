"""The answer and nothing else: the baseline that every format is compared with."""

from lora_cot.formats.base import CotFormat, Stage

DIRECT = CotFormat("direct", (Stage("ANSWER", is_answer=True, tagged=False, max_new_tokens=256),))
