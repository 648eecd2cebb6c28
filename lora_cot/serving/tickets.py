"""A request as the engine knows it: it can be cancelled, and it counts what it spends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from lora_cot.formats import CotFormat


class CancelledError(Exception):
    """Nobody waits for this request any more."""


@dataclass
class Spent:
    """What a request cost in truth."""

    generate_calls: int = 0
    judge_calls: int = 0
    """Prompts that a judge was asked."""
    generated_tokens: int = 0
    """Of all candidates."""
    judge_tokens: int = 0
    """That judges wrote; a verdict that is read from odds writes none."""
    judge_prompt_tokens: int = 0
    looks: int = 0
    """Of all candidates at their images."""
    shown_tokens: int = 0
    """That these put before them again, marks included."""

    def add(self, is_judge: bool, calls: int, tokens: int) -> None:
        """What was drawn, by whom."""
        if is_judge:
            self.judge_calls += calls
            self.judge_tokens += tokens
        else:
            self.generate_calls += calls
            self.generated_tokens += tokens


@dataclass(eq=False)
class Ticket:
    """One request."""

    on_text: Callable[[CotFormat, str], None] | None = None
    """Told what is new in the one text that is written, and the pass it belongs to; called by the engine's thread."""
    deadline: float | None = None
    """On `time.monotonic`'s clock: no prompt is read for it after that. The search's own."""
    most_judged: int | None = None
    """Tokens of prompts that its judges may be given; None: any number."""
    on_cancel: Callable[[], None] = lambda: None
    """Called once it is cancelled."""
    spent: Spent = field(default_factory=Spent)
    prompts: dict[str, int] = field(default_factory=dict)
    """Tokens of the first prompt of each pass."""
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def is_cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Everything that waits for the engine in its name is told so within a step."""
        self._cancelled.set()
        self.on_cancel()

    def may_judge(self, tokens: int) -> bool:
        """Whether judges may be given prompts of so many tokens more; if so, they are counted."""
        if self.most_judged is not None and self.spent.judge_prompt_tokens + tokens > self.most_judged:
            return False
        self.spent.judge_prompt_tokens += tokens
        return True

    def check(self) -> None:
        """Go on only for somebody.

        Raises:
            CancelledError: it was cancelled.
        """
        if self.is_cancelled:
            raise CancelledError
