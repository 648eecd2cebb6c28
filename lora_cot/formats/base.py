"""What a chain of thought looks like as text: ordered stages, how each is asked for, written and read back.

A format knows nothing of tokens, images or models. `question` and `write` make the two halves of a training sample,
`parse` reads what a model wrote; writing stages and parsing them gives the same stages back.

Most formats are generated in one pass. A split one (Multimodal-CoT's two stages) is generated in as many as it has
stages: each pass is a format of its own, with a prompt that holds the stages before it and an adapter of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lora_cot.errors import DataError, FormatError, Problem
from lora_cot.formats.answers import letter
from lora_cot.formats.parser import Parsed, StageParser, last_line
from lora_cot.types import Exchange

TAG_STYLES = {"xml": ("<{}>", "</{}>"), "brackets": ("[{}]", "[/{}]")}
"""How a tag is spelled. T5's vocabulary has no `<`, so its backbone asks for brackets."""


@dataclass(frozen=True)
class Stage:
    """One named step of the reasoning."""

    name: str
    tag: str | None = None
    """What its tags say; the name if not given."""
    is_answer: bool = False
    """The stage whose text is compared with the gold answer."""
    tagged: bool = True
    """False: the stage is the whole text, without marks. Only for a format of a single stage."""
    ends_in_answer: bool = False
    """Of an untagged answer stage: the short answer is its last line, what stands before it the reasoning."""
    max_new_tokens: int = 512
    """Budget of generated tokens; generation stops there whether or not the stage was closed."""
    criterion: str = "answers the question better"
    """What a judge is asked for: 'the response that …'."""
    cue: str = ""
    """Of a split format: what the prompt ends with when this stage is asked for, and what stands before its text after."""
    made_of: tuple[str, ...] = ()
    """Stages of other formats whose texts, joined, are this one's gold text where it has none under its own name."""

    @property
    def label(self) -> str:
        """What stands in the tags."""
        return self.tag or self.name


@dataclass(frozen=True)
class CotFormat:
    """Ordered stages, written one after another between their tags (LLaVA-CoT, section 3)."""

    name: str
    stages: tuple[Stage, ...]
    tag_style: str = "xml"
    split: bool = False
    """Each stage is generated in a pass of its own."""
    given: tuple[Stage, ...] | None = None
    """Of a pass of a split format: the stages that its prompt holds."""

    def __post_init__(self) -> None:
        problems = [Problem(f"format {self.name}", what) for what in self._contradictions()]
        if problems:
            raise FormatError(problems)

    def _contradictions(self) -> Iterable[str]:
        names, labels = [stage.name for stage in self.stages], [stage.label for stage in self.stages]
        if not names:
            yield "no stages: at least one is needed"
        yield from (f"stage '{name}' is declared twice" for name in sorted(set(names)) if names.count(name) > 1)
        if len(set(names)) == len(names):
            yield from (f"two stages have the tag '{tag}'" for tag in sorted(set(labels)) if labels.count(tag) > 1)
        words = [("stage", name) for name in names] + [("tag", stage.tag) for stage in self.stages if stage.tag is not None]
        for kind, word in words:
            if not re.fullmatch(r"[\w-]+", word):
                yield f"{kind} '{word}': a {'name' if kind == 'stage' else 'tag'} is letters, digits, '_' or '-'"
        if names and self.given is None and sum(stage.is_answer for stage in self.stages) != 1:
            yield "exactly one stage must be the answer (is_answer: true)"
        if self.split and not all(stage.cue for stage in self.stages):
            yield "every stage of a split format needs a cue"
        if self.split and len({name.lower() for name in names}) < len(set(names)):
            yield "stages of a split format must differ in more than case: passes are named in lower case"
        if len(names) > 1 and not all(stage.tagged for stage in self.stages):
            yield "an untagged stage must be the only one"
        if self.tag_style not in TAG_STYLES:
            yield f"tag_style '{self.tag_style}' is not one of {', '.join(TAG_STYLES)}"

    @property
    def answer_stage(self) -> Stage:
        """The stage that holds the short answer; of a pass, its only stage."""
        return next((stage for stage in self.stages if stage.is_answer), self.stages[0])

    @property
    def is_tagged(self) -> bool:
        """Whether the stages can be told apart in the text."""
        return self.stages[0].tagged

    @property
    def passes(self) -> tuple[CotFormat, ...]:
        """What is generated one after another, each with a prompt and an adapter of its own."""
        if not self.split:
            return (self,)
        return tuple(
            CotFormat(stage.name.lower(), (replace(stage, tagged=False),), self.tag_style, given=self.stages[:number])
            for number, stage in enumerate(self.stages)
        )

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def spelled(self, tag_style: str) -> CotFormat:
        """The same stages with tags that another tokenizer can write."""
        return replace(self, tag_style=tag_style)

    def opening(self, stage: Stage) -> str:
        """Tag before a stage; empty if untagged."""
        return TAG_STYLES[self.tag_style][0].format(stage.label) if stage.tagged else ""

    def closing(self, stage: Stage) -> str:
        """Tag after a stage; empty if untagged."""
        return TAG_STYLES[self.tag_style][1].format(stage.label) if stage.tagged else ""

    def question(self, exchange: Exchange, choices: Sequence[str] = ()) -> str:
        """The user's turn.

        A pass of a split format asks as Multimodal-CoT does (Zhang et al. 2023, its released prompts): the question,
        its options, the stages before, and the cue of the stage that is wanted.

        Raises:
            DataError: a stage that the prompt must hold has no text.
        """
        options = "Options: " + " ".join(f"({letter(n)}) {choice}" for n, choice in enumerate(choices)) if choices else ""
        cue = self.stages[0].cue
        if not cue or self.split:
            return "\n".join(filter(None, (exchange.question.strip(), options)))
        lines = [f"Question: {exchange.question.strip()}", options]
        texts = self._gold_texts(self.given or (), exchange)
        lines += [f"{stage.cue} {texts[stage.name]}" for stage in self.given or ()]
        return "\n".join(filter(None, (*lines, cue)))

    def write(self, stages: Mapping[str, str]) -> list[tuple[Stage, str]]:
        """The stages that are given as text, in order, each with its tags and the separator that goes before it.

        Separators and inner spaces are those of the published model's outputs (`<SUMMARY> … </SUMMARY>`, an empty
        line, `<CAPTION> …`).
        """
        pieces: list[tuple[Stage, str]] = []
        for stage in self.stages:
            if stage.name not in stages:
                continue
            text = stages[stage.name].strip()
            if stage.tagged:
                gap = "\n\n" if pieces else ""
                text = f"{gap}{self.opening(stage)} {text} {self.closing(stage)}"
            pieces.append((stage, text))
        return pieces

    def said(self, exchange: Exchange) -> list[tuple[Stage, str]]:
        """An earlier answer as a later prompt shows it: its stages; the answer alone, where that is all that is known.

        Raises:
            DataError: see `gold`.
        """
        if exchange.stages is None and exchange.answer is not None:
            return [(self.answer_stage, exchange.answer.strip())]
        return self.write(self.gold(exchange))

    def gold(self, exchange: Exchange) -> dict[str, str]:
        """Gold text of every stage.

        Raises:
            DataError: a stage has no gold text, or its text holds one of this format's tags.
        """
        texts = self._gold_texts(self.stages, exchange)
        return {name: self._untagged(name, text) for name, text in texts.items()}

    def _gold_texts(self, stages: Sequence[Stage], exchange: Exchange) -> dict[str, str]:
        known, texts = dict(exchange.stages or {}), {}
        for stage in stages:
            parts = [known.get(name, "").strip() for name in stage.made_of]
            answer = exchange.answer if stage.is_answer and not stage.ends_in_answer else None
            texts[stage.name] = (known.get(stage.name) or answer or ("\n".join(parts) if all(parts) else "")).strip()
        missing = [name for name, text in texts.items() if not text]
        if missing:
            raise DataError(Problem("", f"no text for {', '.join(missing)}", self._expected(), kind="tags"))
        return texts

    def read(self, reply: str) -> dict[str, str]:
        """The stages of a gold answer that is given as one text.

        Raises:
            DataError: it is not complete.
        """
        parsed = self.parse(reply)
        if parsed.outcome != "complete":
            what = f"not a text in the format {self.name}: {parsed.fault}"
            raise DataError(Problem("", what, self._expected(), kind="tags"))
        return {stage.name: stage.text for stage in parsed.stages}

    @cached_property
    def _tags(self) -> tuple[str, ...]:
        return tuple(tag for stage in self.stages for tag in (self.opening(stage), self.closing(stage)) if tag)

    def _expected(self) -> str:
        return "expected " + " ".join(f"{self.opening(s)}…{self.closing(s)}" for s in self.stages)

    def _untagged(self, name: str, text: str) -> str:
        found = [tag for tag in self._tags if tag in text]
        if found:
            what = f"the text of {name} holds the tag {found[0]}"
            raise DataError(Problem("", what, "remove it, or rename the stage", kind="tags"))
        return text

    def short_answer(self, stages: Mapping[str, str]) -> str | None:
        """What is compared with a model's answer, of gold texts by stage; None where there is none for the answer stage."""
        text = stages.get(self.answer_stage.name)
        return last_line(text)[1] if text and self.answer_stage.ends_in_answer else text

    def reasoning(self, parsed: Parsed) -> list[str]:
        """The texts that led to the answer: of the other stages; or, before the answer in its own, where it ends in it."""
        answer = self.answer_stage
        texts = [stage.text for stage in parsed.stages if stage.name != answer.name]
        if answer.ends_in_answer:
            texts = [last_line(stage.text)[0] for stage in parsed.stages]
        return [text for text in texts if text]

    def parser(self) -> StageParser:
        """A fresh streaming parser of generated text."""
        if not self.is_tagged:
            return StageParser([(self.stages[0].name, "", "")], self.answer_stage.name, self.answer_stage.ends_in_answer)
        marks = [(stage.name, self.opening(stage), self.closing(stage)) for stage in self.stages]
        return StageParser(marks, self.answer_stage.name)

    def parse(self, text: str) -> Parsed:
        """The stages of a whole generated text. Total: every string has a defined outcome."""
        parser = self.parser()
        parser.feed(text)
        return parser.finish()
