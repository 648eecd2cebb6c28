"""Reading stages out of generated text: one state machine for whole texts and for streams.

Outcomes are defined for every string. Outside a stage, the opening tag of any stage that is still to come enters it
(the ones skipped are missing); every other tag there is stray text. Inside a stage only its own closing tag counts:
any other tag is quoted text, so a caption that speaks of `<CONCLUSION>` changes nothing. Tags in another case are
text. A stage that never closes holds the rest of the text and is marked as unfinished.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

Outcome = Literal["complete", "partial", "none"]


class Event(NamedTuple):
    """One thing that a stream has told: a stage began, went on, or ended. Stage None is text outside all stages."""

    kind: Literal["start", "text", "end"]
    stage: str | None
    text: str = ""


@dataclass(frozen=True)
class ParsedStage:
    """One stage that was found."""

    name: str
    text: str
    """Inner text, stripped."""
    closed: bool


@dataclass(frozen=True)
class Parsed:
    """What a text holds."""

    stages: tuple[ParsedStage, ...]
    outcome: Outcome
    """complete: every tag of every stage exactly once and in order; none: no tag at all; partial: the rest."""
    answer: str | None
    """Text of the answer stage, unfinished or not; its last line where it ends in the answer; None where there is none.
    Never guessed."""
    outside: str
    """Text outside all stages, stripped."""
    fault: str = ""
    """The first departure from a complete text, in words."""

    def get(self, name: str) -> ParsedStage | None:
        """The stage of that name, if it was found."""
        return next((stage for stage in self.stages if stage.name == name), None)


def last_line(text: str) -> tuple[str, str]:
    """What stands before the last line of a text that says something, and that line; both stripped."""
    before, _, line = text.strip().rpartition("\n")
    return before.strip(), line.strip()


class StageParser:
    """Takes generated text in pieces of any size and tells the stages as soon as they are certain.

    However the text is cut, the events' texts and the final result are the same.
    """

    def __init__(self, marks: list[tuple[str, str, str]], answer: str, in_last_line: bool = False):
        """
        Args:
            marks: (stage name, opening tag, closing tag) in order; one stage with empty tags takes the whole text.
            answer: name of the stage that holds the answer.
            in_last_line: the answer is the last line of that stage, not all of it.
        """
        self._marks = marks
        self._answer = answer
        self._in_last_line = in_last_line
        self._tags = [tag for _, opening, closing in marks for tag in (opening, closing) if tag]
        self._pattern = re.compile("|".join(map(re.escape, self._tags))) if self._tags else None
        self._pending = ""
        self._seen: list[str] = []
        self._texts: dict[str, list[str]] = {}
        self._closed: set[str] = set()
        self._outside: list[str] = []
        self._next = 0
        self._current: int | None = None
        if self._pattern is None:
            self._enter(0)

    @property
    def stage(self) -> str | None:
        """Name of the stage the text is in now."""
        return None if self._current is None else self._marks[self._current][0]

    @property
    def held(self) -> str:
        """What is held back, since it may be the beginning of a tag."""
        return self._pending

    def feed(self, text: str) -> list[Event]:
        """The events that this piece of text makes certain; a possible beginning of a tag is held back."""
        self._pending += text
        events: list[Event] = []
        if self._pattern is None:
            self._take(len(self._pending), events)
            return events
        while match := self._pattern.search(self._pending):
            self._take(match.start(), events)
            self._tag(match.group(), events)
        self._take(len(self._pending) - self._held(), events)
        return events

    def finish(self) -> Parsed:
        """Result over all that was fed. Nothing may be fed afterwards."""
        self._take(len(self._pending), [])
        stages = tuple(
            ParsedStage(name, "".join(self._texts[name]).strip(), name in self._closed)
            for name, _, _ in self._marks
            if name in self._texts
        )
        answer = next((stage.text for stage in stages if stage.name == self._answer), None)
        if answer and self._in_last_line:
            _, answer = last_line(answer)
        outcome, fault = self._outcome()
        return Parsed(stages, outcome, answer or None, "".join(self._outside).strip(), fault)

    def _held(self) -> int:
        """Number of characters at the end that may be the beginning of a tag."""
        longest = max(map(len, self._tags))
        for size in range(min(longest - 1, len(self._pending)), 0, -1):
            tail = self._pending[-size:]
            if any(tag.startswith(tail) for tag in self._tags):
                return size
        return 0

    def _take(self, size: int, events: list[Event]) -> None:
        text, self._pending = self._pending[:size], self._pending[size:]
        if text:
            (self._outside if self.stage is None else self._texts[self.stage]).append(text)
            events.append(Event("text", self.stage, text))

    def _enter(self, index: int) -> None:
        self._current, self._next = index, index + 1
        self._texts[self._marks[index][0]] = []

    def _tag(self, tag: str, events: list[Event]) -> None:
        self._seen.append(tag)
        if self._current is None:
            later = [i for i in range(self._next, len(self._marks)) if self._marks[i][1] == tag]
            if later:
                self._pending = self._pending[len(tag) :]
                self._enter(later[0])
                events.append(Event("start", self.stage))
                return
        elif tag == self._marks[self._current][2]:
            self._pending = self._pending[len(tag) :]
            name = self._marks[self._current][0]
            self._closed.add(name)
            self._current = None
            events.append(Event("end", name))
            return
        self._take(len(tag), events)

    def _outcome(self) -> tuple[Outcome, str]:
        if self._pattern is None:
            empty = not "".join(self._texts[self._marks[0][0]]).strip()
            return ("none", "the text is empty") if empty else ("complete", "")
        if self._seen == self._tags:
            return "complete", ""
        if not self._seen:
            return "none", "no stage tag in the text"
        for position, tag in enumerate(self._tags):
            if position >= len(self._seen):
                return "partial", f"{tag} is missing"
            if self._seen[position] != tag:
                return "partial", f"{self._seen[position]} where {tag} was expected"
        return "partial", f"{self._seen[len(self._tags)]} after the last stage"
