"""When a text is shown patches of its images again, as plain values: what is asked for, what was shown, what comes next.

ICoT (Gao et al. 2024, section 3.2) looks where a token ends a line. Here the signal is read off the text, whatever token
carries it, and it is edge-triggered: line breaks with nothing but blanks between them are one. The released code counts
tokens of one number only, and after its second line break looks at three steps in a row.

`recipe/interleave.py` has the keys, `search/interleave.py` makes these values of them, `looking.py` is a look at what
`sight.py` keeps, by the attention and the insertion of `patches.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lora_cot.types import Sample

Insertion = Literal["input", "kv_copy"]


@dataclass(frozen=True)
class Patch:
    """A place on an image."""

    image: int
    row: int
    column: int


@dataclass(frozen=True)
class Shown:
    """Patches that were put before the model again."""

    place: int
    """Characters of the candidate's text before them; 0 also where the look belongs to the end of the text it goes on from."""
    patches: tuple[Patch, ...]
    """By rows."""
    weights: tuple[float, ...] | None
    """Share of the attention of the text's last token that each patch had; None where it was not looked at."""
    grids: tuple[tuple[int, int], ...]
    """Rows and columns of each image's patches."""


@dataclass(frozen=True)
class Interleave:
    """How a text looks at its images again."""

    name: str
    """Of the selector, for errors."""
    select: Callable[[Any], Sequence[int]]
    """Chooses: see `looking.Select`."""
    is_watched: bool = True
    """The selector needs attention, which then is computed."""
    n: int = 0
    """Patches of a look at most; 0: the family's own number, which `Engine.see` puts in."""
    cap: int | None = 3
    """Looks of a text."""
    every: int = 1
    """A look at each so-manieth signal."""
    marks: tuple[str, ...] = ()
    """Texts that are signals, such as closing tags; without any, line breaks are."""
    insert: Insertion = "input"
    """Whether patches run through the model, or their keys and values are copied."""
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    """Whose attention is averaged; all if not given."""
    only_last: bool = False
    """Only the last image is looked at."""
    from_start: bool = False
    """The end of the prompt is where a text looks too."""
    is_square: bool = False
    """Patches stand at the positions of a small square image, and not at their own."""
    is_faithful: bool = False
    """All this but the selector is to be as in the released code on the engine's model: see `Engine.see`."""
    around: int = 0
    """Tokens beside the patches of a look: of marks, which `Engine.see` counts."""

    def most_shown(self, patches: int, drawn: int, gaze: Gaze | None = None) -> int:
        """Tokens that a text may be shown, at most.

        Args:
            patches: of its images, or more.
            drawn: tokens that it may go on for: it looks once at most before each of them.
            gaze: what it was shown before.
        """
        gaze = gaze or Gaze()
        left = max(0, patches - len(gaze.taken))  # no patch is shown twice
        looks = min(left, drawn, left if self.cap is None else max(0, self.cap - gaze.looks))
        return min(looks * self.n, left) + looks * self.around


@dataclass(frozen=True)
class Looking:
    """The same for one question."""

    how: Interleave
    sample: Sample
    seed: int = 0
    """Of selectors that draw."""


@dataclass(frozen=True)
class Gaze:
    """What a text has been shown, and how far it is from the next look. Texts that part share what they had."""

    text: str = ""
    """What was generated before this ask."""
    taken: frozenset[int] = frozenset()
    """Numbers of patches."""
    looks: int = 0
    signals: int = 0
    is_fresh: bool = False
    """Something was written since the last signal."""
    is_due: bool = False
    """The text stands where it looks, and did not look yet."""

    def after(self, how: Interleave, piece: str, closed: str = "") -> Gaze:
        """One token on.

        Args:
            how: the text looks.
            piece: the token's text.
            closed: the mark that it ends; empty if none.
        """
        signals, fresh = self.signals, self.is_fresh
        for character in piece:
            if character == "\n" and fresh and not how.marks:
                signals, fresh = signals + 1, False
            elif not character.isspace() and character not in closed:
                fresh = True
        if closed:
            signals, fresh = signals + fresh, False
        room = how.cap is None or self.looks < how.cap
        due = any(number % how.every == 0 for number in range(self.signals + 1, signals + 1)) and room
        return replace(self, signals=signals, is_fresh=fresh, is_due=due)

    def shown(self, numbers: Sequence[int]) -> Gaze:
        """After a look at these patches; none: there was none."""
        return replace(self, is_due=False, taken=self.taken.union(numbers), looks=self.looks + bool(numbers))
