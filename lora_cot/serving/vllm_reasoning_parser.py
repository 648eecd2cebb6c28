"""A reasoning parser for vLLM: of a four-stage model, `reasoning` is SUMMARY, CAPTION and REASONING, `content` the CONCLUSION.

    vllm serve MODEL --reasoning-parser-plugin vllm_reasoning_parser.py --reasoning-parser lora_cot

This file stands alone: copy it to where vLLM runs. Where lora_cot is installed beside vLLM, its module's name,
`lora_cot.serving.vllm_reasoning_parser`, does as well as a path. Written against vLLM 0.33.

Stages are read as `lora_cot/formats/parser.py` reads them, and a stream tells the same as a whole answer:

- a tag that is out of place is text, and so is any tag inside another stage;
- a stage that never closes holds the rest of the text;
- without a text in CONCLUSION, `content` is what comes after the last closed stage, so that no answer looks empty that is
  not. What was written of an unfinished stage then stands in both.

Structured outputs are refused: what a grammar allows has no tags, and vLLM would not enforce it behind this parser.
lora_cot's own searches need the tags: for `--engine URL`, leave the parser away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from vllm.reasoning import ReasoningParser, ReasoningParserManager
from vllm.reasoning.basic_parsers import DeltaMessage  # it is imported there in every version; its own module moves

STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
TAG = re.compile("|".join(f"</?{stage}>" for stage in STAGES))
TAGS = [tag for stage in STAGES for tag in (f"<{stage}>", f"</{stage}>")]
GAP = "\n\n"
"""Between two stages of the reasoning."""


class Stages:
    """Sorts a text into reasoning and content, in pieces of any size."""

    def __init__(self) -> None:
        self._pending = ""
        self._current: str | None = None
        self._next = 0
        self._space = ""
        """White space that is told only if more of the stage follows; before its first text, the gap to the last one."""
        self._is_fresh = True
        """Nothing of the stage was told yet."""
        self._loose = ""
        """Since the last closed stage."""
        self.has_concluded = False
        """CONCLUSION was opened."""
        self._told = {"reasoning": "", "content": ""}

    def feed(self, text: str) -> dict[str, str]:
        """What a further piece makes certain, by kind; what may be the beginning of a tag is held back."""
        self._pending += text
        new = {"reasoning": "", "content": ""}
        while match := TAG.search(self._pending):
            self._take(match.start(), new)
            if self._turns(match.group()):
                self._pending = self._pending[match.end() - match.start() :]
            else:
                self._take(len(match.group()), new)
        self._take(len(self._pending) - self._held(), new)
        return new

    def finish(self) -> dict[str, str]:
        """The rest."""
        new = {"reasoning": "", "content": ""}
        self._take(len(self._pending), new)
        if not self._told["content"]:
            new["content"] = self._loose.strip()
        return new

    def _turns(self, tag: str) -> bool:
        """Whether a tag begins or ends a stage here."""
        stage = tag.strip("</>")
        opens = not tag.startswith("</")
        if self._current is None and opens and STAGES.index(stage) >= self._next:
            self._current, self._next = stage, STAGES.index(stage) + 1
            self._is_fresh, self._space = True, GAP if self._told["reasoning"] and stage != STAGES[-1] else ""
            self.has_concluded = stage == STAGES[-1]
            return True
        if self._current == stage and not opens:
            self._current, self._loose = None, ""
            return True
        return False

    def _take(self, size: int, new: dict[str, str]) -> None:
        text, self._pending = self._pending[:size], self._pending[size:]
        self._loose += text
        if self._current is None:
            return
        text = text.lstrip() if self._is_fresh else text
        shown = text.rstrip()
        if not shown:
            self._space += text
            return
        kind = "content" if self._current == STAGES[-1] else "reasoning"
        new[kind] += self._space + shown
        self._told[kind] += self._space + shown
        self._space, self._is_fresh = text[len(shown) :], False

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a tag."""
        sizes = range(min(max(map(len, TAGS)) - 1, len(self._pending)), 0, -1)
        return next((size for size in sizes if any(tag.startswith(self._pending[-size:]) for tag in TAGS)), 0)


@ReasoningParserManager.register_module("lora_cot")
class FourStageReasoningParser(ReasoningParser):
    """What vLLM asks of a parser; one for each answer."""

    engine_based_streaming = True
    """So that vLLM calls `finish_streaming`."""

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any):
        super().__init__(tokenizer, *args, **kwargs)
        self._stages = Stages()

    @property
    def reasoning_start_str(self) -> str:
        """The tag that reasoning begins with."""
        return TAGS[0]

    @property
    def reasoning_end_str(self) -> str:
        """The tag that the answer begins with."""
        return TAGS[-2]

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Never: tags are several tokens, and what follows the conclusion must be read here too."""
        return False

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """Never, see `is_reasoning_end`."""
        return False

    def has_engine_confirmed_reasoning_end(self) -> bool:
        """Never, see `is_reasoning_end`."""
        return False

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """None: content is told as text."""
        return []

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Tokens before the conclusion, tags included; all of them if there is none."""
        low, high = 0, len(token_ids)
        while low < high:  # the first number of tokens whose text opens the conclusion
            middle = (low + high) // 2
            stages = Stages()
            stages.feed(self.model_tokenizer.decode(list(token_ids[:middle])))
            low, high = (low, middle) if stages.has_concluded else (middle + 1, high)
        return low

    def adjust_request(self, request: Any) -> Any:
        """The request as it is.

        Raises:
            ValueError: it asks for structured outputs.
        """
        wanted = getattr(request, "response_format", None)
        if getattr(request, "structured_outputs", None) or (wanted is not None and wanted.type != "text"):
            raise ValueError(
                "structured outputs do not go with the reasoning parser lora_cot: leave them away, or serve without it"
            )
        return request

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Reasoning and content of a whole answer; None where there is none."""
        stages = Stages()
        first, last = stages.feed(model_output), stages.finish()
        return first["reasoning"] + last["reasoning"] or None, first["content"] + last["content"] or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """What a further piece of an answer makes certain, if anything."""
        return _message(self._stages.feed(delta_text))

    def finish_streaming(self) -> DeltaMessage | None:
        """The rest of an answer, if there is any."""
        return _message(self._stages.finish())


def _message(new: dict[str, str]) -> DeltaMessage | None:
    found = {kind: text for kind, text in new.items() if text}
    return DeltaMessage(**found) if found else None
