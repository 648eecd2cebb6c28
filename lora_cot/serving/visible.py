"""What a client sees of a text with stages: the conclusion is the content, the stages before it are the reasoning.

Of a text without tags that ends in its answer, the last line is the content, and the lines before it are the reasoning.

The same for a stream, whatever pieces it comes in, and for a whole text. A text without a conclusion shows what comes after
its last closed stage, so that it never looks empty when it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lora_cot.formats import CotFormat
from lora_cot.formats.parser import StageParser, last_line
from lora_cot.search.trace import TracedStage

Kind = Literal["reasoning", "content"]
GAP = "\n\n"
"""Between two stages of the reasoning."""


@dataclass(frozen=True)
class Delta:
    """A further piece of what is seen."""

    kind: Kind
    text: str
    stage: str | None = None
    """The stage that it is of."""


class Visible:
    """Sorts a text into reasoning and content as it is written."""

    def __init__(self, cot_format: CotFormat, stops: Sequence[str] = (), with_reasoning: bool = True):
        """
        Args:
            cot_format: of the whole answer.
            stops: strings that end the content.
            with_reasoning: False: the content is the text with its tags.
        """
        self._format, self._with_reasoning = cot_format, with_reasoning
        self._parser: StageParser = cot_format.parser()
        self._parsed_pass: str | None = None
        self._stage: str | None = None
        self._space = ""
        """White space that is seen only if more follows."""
        self._fresh = True
        """Nothing of the stage was seen yet."""
        self._lines = ""
        """Of a stage that ends in the answer: all of it so far."""
        self._content = _Until(stops)
        self.reasoning = ""

    @property
    def content(self) -> str:
        """All that was told of it."""
        return self._content.told

    @property
    def is_cut(self) -> bool:
        """A stop string ended the content."""
        return self._content.is_over

    def feed(self, text: str, pass_format: CotFormat | None = None) -> list[Delta]:
        """What a piece of text makes certain.

        Args:
            text: goes on from the last one.
            pass_format: of a split format, the pass that wrote it.
        """
        if not self._with_reasoning:
            return [] if pass_format is not None else self._shown("content", text)
        if pass_format is not None and pass_format.name != self._parsed_pass:
            self._parser, self._parsed_pass = pass_format.parser(), pass_format.name
        deltas = []
        for event in self._parser.feed(text):
            if event.kind == "text" and event.stage is not None:
                ends_in_answer = self._format.stage(event.stage).ends_in_answer
                of_stage = self._of_lines if ends_in_answer else self._of_stage
                deltas += of_stage(event.stage, event.text)
        return deltas

    def feed_step(self, step: TracedStage) -> list[Delta]:
        """What the chosen part of a search's step makes certain."""
        passes = self._format.passes if self._format.split else ()
        passed = next((one for one in passes if one.stages[0].name == step.stage_name), None)
        return self.feed("".join(candidate.text for candidate in step.candidates if candidate.chosen), passed)

    def finish(self, text: str) -> list[Delta]:
        """What was held back until the end.

        Args:
            text: the whole one.
        """
        reasoning, content = whole(self._format, text) if self._with_reasoning else ("", text)
        deltas = []
        if rest := _rest(self.reasoning, reasoning):
            self.reasoning += rest
            deltas.append(Delta("reasoning", rest))
        return deltas + self._shown("content", _rest(self._content.fed, content), last=True)

    def _of_lines(self, stage: str, text: str) -> list[Delta]:
        """The lines before the last one so far: only the end shows which line is the answer."""
        self._lines += text
        return self._shown("reasoning", _rest(self.reasoning, last_line(self._lines)[0]), stage)

    def _of_stage(self, stage: str, text: str) -> list[Delta]:
        begins = stage != self._stage
        if begins:
            self._stage, self._space = stage, ""
        fresh = begins or self._fresh
        text = self._space + text if not fresh else text.lstrip()
        self._fresh = fresh and not text.strip()
        shown = text.rstrip()
        self._space = text[len(shown) :] if not self._fresh else ""
        if not shown:
            return []
        if stage == self._format.answer_stage.name:
            return self._shown("content", shown, stage)
        gap = GAP if fresh and self.reasoning else ""
        return self._shown("reasoning", gap + shown, stage)

    def _shown(self, kind: Kind, text: str, stage: str | None = None, last: bool = False) -> list[Delta]:
        if kind == "content":
            text = self._content.feed(text, last)
        else:
            self.reasoning += text
        return [Delta(kind, text, stage)] if text else []


def whole(cot_format: CotFormat, text: str) -> tuple[str, str]:
    """Reasoning and content of a whole text."""
    parsed = cot_format.parse(text)
    return GAP.join(cot_format.reasoning(parsed)), parsed.answer or _after_closed(cot_format, text)


def _after_closed(cot_format: CotFormat, text: str) -> str:
    """What comes after the last closed stage, without tags that open one."""
    parser, pieces = cot_format.parser(), list[str]()
    for event in parser.feed(text):
        pieces = [] if event.kind == "end" else [*pieces, event.text]
    return ("".join(pieces) + parser.held).strip()


def _rest(told: str, full: str) -> str:
    return full[len(told) :] if full.startswith(told) else ""


class _Until:
    """A text up to the first of some strings; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held = stops, ""
        self.fed, self.told, self.is_over = "", "", False

    def feed(self, text: str, last: bool = False) -> str:
        self.fed += text
        if self.is_over:
            return ""
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.is_over = True
            new, self._held = self._held[: min(found)], ""
        else:
            keep = 0 if last else max((size for stop in self._stops for size in _overlaps(self._held, stop)), default=0)
            new, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self.told += new
        return new


def _overlaps(text: str, stop: str) -> list[int]:
    """Sizes of the beginnings of a string that a text ends with."""
    return [size for size in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:size])]
