"""One row: what the teacher says to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lora_cot.annotation.prompts import messages, verdict_messages
from lora_cot.annotation.rows import gold_answer
from lora_cot.annotation.verdicts import Aside, disagreement, read_verdict, stages_of
from lora_cot.data.images import MAX_PIXELS
from lora_cot.engines.chat import ChatServer
from lora_cot.engines.teacher import Teacher
from lora_cot.errors import AccessError, DataError, RejectedError
from lora_cot.formats import CotFormat
from lora_cot.formats.answers import read_option
from lora_cot.types import Sample

VERDICT_TOKENS = 300
"""Budget of the second question's answer; LLaVA-CoT's."""


@dataclass(frozen=True)
class Asker:
    """Asks one teacher for the stages of one format."""

    server: ChatServer
    teacher: Teacher
    cot_format: CotFormat
    faithful: bool = False
    max_pixels: int = MAX_PIXELS

    def __call__(self, sample: Sample) -> dict[str, str] | Aside:
        """The stages of a sample, or why there are none. The answer stage holds the gold answer where the teacher's is the
        same by our own reading, and the teacher's words where only its verdict found them to agree.

        Raises:
            AccessError: the server refuses all requests.
            EngineError: it gave no answer.
        """
        gold = gold_answer(sample.last, self.cot_format)
        try:
            asked = messages(self.cot_format, sample, gold if self.faithful else None, self.max_pixels)
        except DataError as error:
            return Aside("image", str(error))
        try:
            return self._stages(sample, gold, asked)
        except AccessError:
            raise
        except RejectedError as error:
            return Aside("rejected", str(error))

    def _stages(self, sample: Sample, gold: str, asked: list[dict[str, Any]]) -> dict[str, str] | Aside:
        reply = self.teacher.ask(self.server, asked, sum(stage.max_new_tokens for stage in self.cot_format.stages))
        stages = stages_of(reply, self.cot_format)
        if isinstance(stages, Aside):
            return stages
        name = self.cot_format.answer_stage.name
        wrong = disagreement(stages[name], gold, sample.choices)
        if wrong is None:
            return stages | {name: (sample.last.stages or {}).get(name) or gold}
        if not self.faithful or (sample.choices and read_option(gold, sample.choices) is not None):
            return Aside(wrong.reason, wrong.detail, reply.text)
        question = verdict_messages(sample.last.question, stages[name], gold)
        verdict = replace(self.teacher, max_tokens=None).ask(self.server, question, VERDICT_TOKENS).text
        valid = read_verdict(verdict)
        if valid is None:
            return Aside("verdict", " ".join(verdict.split())[:200], reply.text)
        return stages if valid else Aside(wrong.reason, wrong.detail, reply.text)
