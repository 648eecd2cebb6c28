"""Text that people or models wrote, as tokens: a control token that it quotes is tokenised as the plain characters it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


class SafeTokenizer:
    """A tokenizer that tells what is trusted from what is not."""

    def __init__(self, tokenizer: Any, extra: Sequence[str] = ()):
        """
        Args:
            tokenizer: of the base.
            extra: further texts that must not be taken for control tokens.
        """
        self._tokenizer = tokenizer
        self._spelled: dict[str, bool] = {}
        control = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens, *extra}
        self._control = re.compile("|".join(re.escape(token) for token in sorted(control, key=len, reverse=True)))

    def control_tokens(self, text: str) -> list[str]:
        """The tokenizer's own tokens that a text quotes, in order."""
        return self._control.findall(text)

    def unknown_characters(self, text: str) -> list[str]:
        """The characters of a text that the vocabulary lacks, sorted; white space is never one."""
        if self._tokenizer.unk_token_id is None:
            return []
        for character in set(text) - self._spelled.keys():
            ids = [] if character.isspace() else self._ids(character)
            self._spelled[character] = self._tokenizer.unk_token_id not in ids
        return sorted(character for character in set(text) if not self._spelled[character])

    def tokens(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        """Tokens of the joined pieces; False marks text that is not trusted."""
        return self._tokenize(pieces, placed=False)[0]

    def placed_tokens(self, pieces: Sequence[tuple[str, bool]]) -> tuple[list[int], list[int]]:
        """The same, and the position of each token's first character."""
        return self._tokenize(pieces, placed=True)

    def _tokenize(self, pieces: Sequence[tuple[str, bool]], placed: bool) -> tuple[list[int], list[int]]:
        """See `tokens`.

        A control token in text that is not trusted is cut after its first character and the halves are tokenised apart,
        which leaves the text as it is and every other text tokenised as the tokenizer itself would. Positions are left
        out where they are not asked for.
        """
        joined = "".join(text for text, _ in pieces)
        cuts, start = [0], 0
        for text, trusted in pieces:
            if not trusted:
                cuts.extend(start + match.start() + 1 for match in self._control.finditer(text))
            start += len(text)
        ids: list[int] = []
        positions: list[int] = []
        for begin, end in zip(cuts, [*cuts[1:], len(joined)], strict=True):
            # SentencePiece puts a space before the first word of a text: a later run is no beginning.
            before = self._tokenizer.eos_token if begin else ""
            text = before + joined[begin:end]
            if not placed:
                ids += self._ids(text)[bool(before) :]
                continue
            # Not verbose: that a text is longer than a tokenizer's own limit is ours to say, and T5 has none.
            run = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids += run["input_ids"][bool(before) :]
            shift = begin - len(before)
            positions += [shift + offset[0] for offset in run["offset_mapping"][bool(before) :]]
        return ids, positions

    def _ids(self, text: str) -> list[int]:
        """The tokens alone, in half the time: nothing is kept of where in the text they came from."""
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()  # an earlier call of somebody else's may have set either
        backend.no_padding()
        return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
