"""What a search of one question may still spend."""

from __future__ import annotations

import time

from lora_cot.recipe.schema import SearchSection


def is_over(deadline: float | None) -> bool:
    """Whether a time on `time.monotonic`'s clock has come; None never does."""
    return deadline is not None and time.monotonic() >= deadline


class Budget:
    """Tokens of all candidates and judges, and time. It begins to run when it is made, unless a deadline is given."""

    def __init__(self, config: SearchSection, deadline: float | None = None):
        self._most, self._seconds = config.max_search_tokens, config.deadline_seconds
        self.left = config.max_search_tokens
        """Tokens; None: no bound but those of the stages."""
        self.deadline = deadline
        if deadline is None and self._seconds is not None:
            self.deadline = time.monotonic() + self._seconds

    def share(self, candidates: int) -> int | None:
        """Tokens that each of so many candidates may take; None: any number.

        Several get as much each as if they were one more: that share is what the best of them is finished with, should
        all of them be cut.
        """
        if self.left is None:
            return None
        return self.left // (candidates + (candidates > 1))

    def spend(self, tokens: int) -> None:
        """Take off what was generated."""
        if self.left is not None:
            self.left = max(self.left - tokens, 0)

    @property
    def for_judges(self) -> int | None:
        """Tokens that the judge of one contest may write: half of what is left, so that the winner can be gone on with."""
        return None if self.left is None else self.left // 2

    @property
    def is_late(self) -> bool:
        """Whether the time is over."""
        return is_over(self.deadline)

    @property
    def no_time(self) -> str:
        """Says that it ended for want of time."""
        return f"out of time: deadline_seconds is {self._seconds:g}"

    @property
    def no_tokens(self) -> str:
        """Says that it ended for want of tokens."""
        return f"out of tokens: max_search_tokens is {self._most}"

    @property
    def spent(self) -> str:
        """Says which of both it is that nothing could be drawn for."""
        return self.no_time if self.is_late else self.no_tokens
