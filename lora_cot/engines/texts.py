"""From generated tokens to text, and whether a candidate ends there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lora_cot.engines.base import Ask, Ended

SENTENCE = re.compile(r"""(?:(?<!\d)[.!?]["')\]]*|[^\s\d][^\S\n]*\d+[.!?]["')\]]*\s+\S*|\n)$""")
"""The end of a text that ends with a sentence. A point after a digit may be a decimal one: what follows decides; after the
number that begins a line it ends nothing."""
TAIL = 24
"""Tokens of a text's end in which a stop string, a sentence or a character may begin that its next token ends."""


class Texts:
    """Decodes a tokenizer's tokens; nothing that was generated is ever tokenised again."""

    def __init__(self, tokenizer: Any, ends: set[int]):
        """
        Args:
            tokenizer: of the model.
            ends: tokens that end a text.
        """
        self.tokenizer, self.ends = tokenizer, ends
        self._pieces: dict[int, str] = {}

    def text(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        """The text of tokens, without an end token.

        Args:
            ids: the tokens.
            after: those before them. SentencePiece drops the space before the first token of a text, and a character may
                begin in one token and end in the next: it belongs to the text that ends it.
        """
        if ids and ids[-1] in self.ends:
            ids = ids[:-1]
        whole, before = self._decoded([*after, *ids]), self._decoded(after)
        return whole[len(before) :] if whole.startswith(before) else self._decoded(ids)

    def _decoded(self, ids: Sequence[int]) -> str:
        return self._raw(ids).rstrip("\ufffd") if ids else ""

    def _raw(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def ended(self, ids: Sequence[int], ask: Ask) -> Ended | None:
        """How a candidate's tokens end, None if they go on; they are looked at after each."""
        if ids[-1] in self.ends:
            return "end"
        before = ask.state.tail
        if any(self.ends_with(ids, before, stop) for stop in ask.stop):
            return "stop"
        if ask.sentences and SENTENCE.search(self._decoded([*before, *ids][-TAIL:])):
            return "sentence"
        return "length" if len(ids) >= ask.max_new_tokens else None

    def piece(self, token: int) -> str:
        """The text of one token."""
        if token not in self._pieces:
            self._pieces[token] = self._raw([token])
        return self._pieces[token]

    def ends_with(self, ids: Sequence[int], before: Sequence[int], stop: str) -> bool:
        """Whether the last token ends a stop string; only tokens that hold its last character are looked at.

        The string may have begun before this ask, which a budget cut; one that was whole by then is none of it.
        """
        piece = self.piece(ids[-1])
        if stop[-1] not in piece and "\ufffd" not in piece:
            return False
        window = [*before, *ids][-2 * len(stop) :]
        return self._raw(window).count(stop) > self._raw(window[:-1]).count(stop)


class Growing:
    """The text of tokens as they come; a character that is not whole yet is held back."""

    def __init__(self, texts: Texts, after: Sequence[int]):
        """
        Args:
            texts: decodes.
            after: what was generated before.
        """
        self._texts, self._after = texts, list(after)
        self._begin, self._told = 0, 0

    def more(self, ids: Sequence[int]) -> str:
        """What is new in the text of all tokens so far."""
        before = [*self._after, *ids[: self._begin]][-TAIL:]
        text = self._texts.text(ids[self._begin :], before)
        new = text[self._told :]
        self._told = len(text)
        if len(ids) - self._begin >= TAIL:
            self._begin, self._told = len(ids), 0
        return new
