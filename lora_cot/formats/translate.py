"""A sentence in another language and nothing else: multimodal machine translation (DPMM-CoT, arXiv 2312.08762, section 4).

The question itself says which, in the words T5 was trained with: `translate English to German: …`.
"""

from lora_cot.formats.base import CotFormat, Stage

CRITERION = "translates the sentence more faithfully"

TRANSLATE = CotFormat(
    "translate", (Stage("TRANSLATION", is_answer=True, tagged=False, max_new_tokens=128, criterion=CRITERION),)
)
