"""An answer as OpenAI's chat completions spell it, with the stages and the true cost beside."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from lora_cot.formats import CotFormat
from lora_cot.search.trace import Completion, TracedStage, finite
from lora_cot.serving.errors import ApiError
from lora_cot.serving.events import Accepted, Decided, Done, Event, Text
from lora_cot.serving.schema import ChatRequest
from lora_cot.serving.visible import Delta, Visible, whole


def chat_completion(
    request: ChatRequest, question: Accepted, completions: Sequence[Completion], request_id: str
) -> dict[str, Any]:
    """The body of an answer that is sent as a whole."""
    choices = []
    for number, completion in enumerate(completions):
        visible = Visible(question.model.cot_format, request.stops, request.with_reasoning)
        visible.finish(completion.text)
        message: dict[str, Any] = {"role": "assistant", "content": visible.content, "refusal": None}
        if request.with_reasoning:
            message |= {"reasoning_content": visible.reasoning, "reasoning": visible.reasoning}
        choices.append(
            {
                "index": number,
                "message": message | extras(request, completion),
                "finish_reason": finish_reason(completion, visible.is_cut),
                "logprobs": None,
            }
        )
    head = {"id": f"chatcmpl-{request_id}", "object": "chat.completion", "created": int(time.time()), "model": request.model}
    return head | {"choices": choices, "usage": usage(question, completions)}


def extras(request: ChatRequest, completion: Completion) -> dict[str, Any]:
    """What a message holds beyond OpenAI's: the stages, why a text is malformed, and every step if it was asked for."""
    found: dict[str, Any] = {}
    if request.returned != "answer" and request.with_reasoning:
        found["stages"] = stages(completion, request.returned == "trace")
    if completion.parsed.fault:
        found["fault"] = completion.parsed.fault
    if request.returned == "trace":
        found["trace"] = completion.to_json()
    return found


def stages(completion: Completion, with_trace: bool) -> list[dict[str, Any]]:
    """The stages of an answer, with the choice that was made for each, where one was made for it alone."""
    steps = {step.stage: step for step in completion.trace if any(candidate.chosen for candidate in step.candidates)}
    found = []
    for stage in completion.parsed.stages:
        step = steps.get(stage.name)
        chosen = decided(step, with_trace) if step else {}
        found.append({**chosen, "name": stage.name, "text": stage.text, "complete": stage.closed})
    return found


def decided(step: TracedStage, with_trace: bool) -> dict[str, Any]:
    """One step of a search: its name, the chosen text, its score, and how far the next best is behind.

    Args:
        step: with a chosen candidate.
        with_trace: with every candidate and comparison.
    """
    chosen = next(candidate for candidate in step.candidates if candidate.chosen)
    score = chosen.score if chosen.score is not None and math.isfinite(chosen.score) else None
    others = [c.score for c in step.candidates if c is not chosen and c.score is not None and math.isfinite(c.score)]
    margin = score - max(others) if others and score is not None else None
    found: dict[str, Any] = {
        "name": step.stage,
        "text": chosen.text,
        "complete": chosen.closed,
        "score": score,
        "scored_by": step.scored_by,
        "candidates": len(step.candidates),
        "margin": margin,
        "seconds": step.seconds,
    }
    if with_trace:
        found["candidates"] = [finite(candidate) for candidate in step.candidates]
        found["comparisons"] = [finite(comparison) for comparison in step.comparisons]
    return found


def finish_reason(completion: Completion, is_cut: bool) -> str:
    """Stop or length, as OpenAI means them."""
    ended = [candidate.ended for step in completion.trace for candidate in step.candidates if candidate.chosen]
    return "stop" if is_cut or (ended and ended[-1] in ("stop", "end", "sentence")) else "length"


def usage(question: Accepted, completions: Sequence[Completion]) -> dict[str, Any]:
    """Tokens of the returned texts and of each pass's prompt once, and under `search` what was done in truth."""
    spent = question.ticket.spent
    kept = sum(completion.kept_tokens for completion in completions)
    prompt = sum(question.ticket.prompts.values())
    stopped = [completion.stopped for completion in completions if completion.stopped != "complete"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": kept,
        "total_tokens": prompt + kept,
        "completion_tokens_details": {"reasoning_tokens": sum(_reasoning(question.model.cot_format, c) for c in completions)},
        "search": {
            "strategy": question.config.strategy,
            "generated_tokens": spent.generated_tokens,
            "judge_tokens": spent.judge_tokens,
            "judge_prompt_tokens": spent.judge_prompt_tokens,
            "looks": spent.looks,
            "shown_tokens": spent.shown_tokens,
            "calls": {"generate": spent.generate_calls, "judge": spent.judge_calls},
            "judge_failures": sum(completion.judge_failures for completion in completions),
            "stopped": stopped[0] if stopped else "complete",
        },
    }


def _reasoning(cot_format: CotFormat, completion: Completion) -> int:
    """Tokens of the stages before the answer: exact where each was drawn alone, else in proportion to the text."""
    names = {stage.name for stage in cot_format.stages}
    chosen = [(step.stage_name, c.tokens) for step in completion.trace for c in step.candidates if c.chosen]
    answer = cot_format.answer_stage
    if chosen and all(name in names for name, _ in chosen) and not answer.ends_in_answer:
        return sum(tokens for name, tokens in chosen if name != answer.name)
    reasoning, content = whole(cot_format, completion.text)
    seen = len(reasoning) + len(content)
    return round(completion.kept_tokens * len(reasoning) / seen) if seen else 0


class ChatChunks:
    """Turns what happens into the chunks of a stream, or into the whole answer."""

    end = b"data: [DONE]\n\n"

    def __init__(self, request: ChatRequest, question: Accepted, request_id: str):
        self._request, self._question, self._id = request, question, request_id
        self._head = {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": request.model,
        }
        make = question.model.cot_format, request.stops, request.with_reasoning
        self._visible = [Visible(*make) for _ in question.samples]

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The answer in one piece."""
        return chat_completion(self._request, self._question, completions, self._id)

    def failed(self, error: ApiError) -> dict[str, Any]:
        """The last event of a stream that cannot go on."""
        return error.body

    def begin(self) -> list[dict[str, Any]]:
        """Before anything is written."""
        return [self._chunk(n, {"role": "assistant", "content": ""}) for n in range(len(self._visible))]

    def of(self, event: Event) -> list[dict[str, Any]]:
        """The chunks of one event."""
        if isinstance(event, Text):
            return [self._told(0, delta) for delta in self._visible[0].feed(event.text, event.pass_format)]
        return self._step(event) if isinstance(event, Decided) else self._end(event)

    def _told(self, number: int, delta: Delta) -> dict[str, Any]:
        stage = {"stage": {"name": delta.stage}} if delta.stage and self._shows_stages else {}
        return self._chunk(number, {**_delta([delta]), **stage})

    @property
    def _shows_stages(self) -> bool:
        return self._request.returned != "answer" and self._request.with_reasoning

    def _step(self, event: Decided) -> list[dict[str, Any]]:
        """A stage as it was chosen. What was told token by token is not told again."""
        step = event.step
        deltas = [] if self._question.streams_tokens else self._visible[event.number].feed_step(step)
        if not self._shows_stages or (self._question.streams_tokens and self._request.returned != "trace"):
            return [self._chunk(event.number, _delta(deltas))] if deltas else []
        stage = decided(step, self._request.returned == "trace")
        return [self._chunk(event.number, {**_delta(deltas), "stage": stage})]

    def _end(self, event: Done) -> list[dict[str, Any]]:
        chunks = []
        for number, (visible, completion) in enumerate(zip(self._visible, event.completions, strict=True)):
            if deltas := visible.finish(completion.text):
                chunks.append(self._chunk(number, _delta(deltas)))
            reason = finish_reason(completion, visible.is_cut)
            fault = {"fault": completion.parsed.fault} if completion.parsed.fault else {}
            chunks.append(self._chunk(number, fault, reason))
        options = self._request.stream_options
        if options and options.include_usage:
            chunks.append({**self._head, "choices": [], "usage": usage(self._question, event.completions)})
        return chunks

    def _chunk(self, number: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**self._head, "choices": [choice]}


def _delta(deltas: Sequence[Delta]) -> dict[str, Any]:
    reasoning = "".join(delta.text for delta in deltas if delta.kind == "reasoning")
    content = "".join(delta.text for delta in deltas if delta.kind == "content")
    found: dict[str, Any] = {"reasoning_content": reasoning, "reasoning": reasoning} if reasoning else {}
    return found | ({"content": content} if content else {})
