"""From generated tokens to text, and whether a candidate ends there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from lora_cot.engines.base import Ask, Ended

SENTENCE = re.compile(r"""(?:(?<!\d)[.!?]["')\]]*|\d[.!?]["')\]]*\s+\S*|\n)$""")
"""The end of a text that ends with a sentence. A point after a digit may be a decimal one: what follows decides."""
TAIL = 8
"""Tokens that are looked at for the end of a sentence."""
WINDOW = 16
"""Tokens that are decoded again for each new one, at most."""


class Texts:
    """Decodes a tokenizer's tokens; nothing that was generated is ever tokenised again."""

    def __init__(self, tokenizer: Any, ends: set[int]):
        """
        Args:
            tokenizer: of the model.
            ends: tokens that end a text.
        """
        self.tokenizer, self.ends = tokenizer, ends
        self._may_end: dict[str, torch.Tensor] = {}
        self._pieces: list[str] = []

    def text(self, ids: Sequence[int], after: int | None = None) -> str:
        """The text of tokens; SentencePiece drops the space before the first of them, unless it is told what was before."""
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if after is None:
            return text
        before, whole = self.text([after]), self.text([after, *ids])
        return whole.removeprefix(before) if whole.startswith(before) else text

    def visible(self, ids: Sequence[int], after: int | None) -> str:
        """The same without an end token."""
        return self.text(ids[:-1] if ids and ids[-1] in self.ends else ids, after)

    def ended(self, ids: Sequence[int], ask: Ask) -> Ended | None:
        """How a candidate's tokens end, None if they go on; they are looked at after each."""
        if ids[-1] in self.ends:
            return "end"
        if any(self._ends_with(ids, stop) for stop in ask.stop):
            return "stop"
        if ask.sentences and SENTENCE.search(self.text(ids[-TAIL:])):
            return "sentence"
        return "length" if len(ids) >= ask.max_new_tokens else None

    def _ends_with(self, ids: Sequence[int], stop: str) -> bool:
        """Whether the stop string is whole with the last token; only tokens that hold its last character are decoded."""
        if stop not in self._may_end:
            self._pieces = self._pieces or [self.text([i]) for i in range(len(self.tokenizer))]
            self._may_end[stop] = torch.tensor([stop[-1] in piece or "\ufffd" in piece for piece in self._pieces])
        may_end = self._may_end[stop]
        if ids[-1] >= len(may_end) or not may_end[ids[-1]]:  # a head can have more rows
            return False
        return stop in self.text(ids[-2 * len(stop) :])


class Growing:
    """The text of tokens as they come. A character that is not whole yet is held back."""

    def __init__(self, texts: Texts, after: int | None):
        """
        Args:
            texts: decodes.
            after: the token before, if it was generated too.
        """
        self._texts, self._after = texts, after
        self._begin, self._told = 0, 0

    def more(self, ids: Sequence[int]) -> str:
        """What is new in the text of all tokens so far."""
        text = self._texts.visible(ids[self._begin :], ids[self._begin - 1] if self._begin else self._after)
        if text.endswith("\ufffd"):
            return ""
        new = text[self._told :]
        self._told = len(text)
        if len(ids) - self._begin >= WINDOW:
            self._begin, self._told = len(ids), 0
        return new
