"""OpenAI's Responses API: the stages before the answer are a `reasoning` item, the answer is a `message` item.

The reasoning's text is all of those stages. Of a format with more than two, the first one is the reasoning's summary too,
and a stream tells that stage under both names. Nothing is kept between requests: what was said before is sent again, as
items; `previous_response_id` is refused.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from lora_cot.search.trace import Completion
from lora_cot.serving.answers import finish_reason, stages, usage
from lora_cot.serving.errors import ApiError
from lora_cot.serving.events import Accepted, Decided, Done, Event, Text
from lora_cot.serving.schema import (
    Effort,
    ImagePart,
    ImageUrl,
    Loose,
    Message,
    ResponseFormat,
    Sampled,
    Strict,
    TextPart,
    Tokens,
)
from lora_cot.serving.visible import Delta, Visible


class InputText(Loose):
    """Text of an item: a user's, or an answer that is sent back."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputImage(Strict):
    """An image of an item."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class InputMessage(Loose):
    """A message; `type` may be left out."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Annotated[InputText | InputImage, Field(discriminator="type")]], Field(max_length=100)]


class InputReasoning(Loose):
    """Reasoning that is sent back; it is left out of the prompt."""

    type: Literal["reasoning"]


class Reasoning(Loose):
    """How much is thought."""

    effort: Effort | None = None
    summary: Any = None
    generate_summary: Any = None


class TextOptions(Loose):
    """The form of the answer: text is all there is."""

    format: ResponseFormat | None = None
    verbosity: Any = None


class ResponsesRequest(Sampled):
    """The body of /v1/responses."""

    input: str | Annotated[list[InputReasoning | InputMessage], Field(min_length=1, max_length=200)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    reasoning: Reasoning | None = None

    include: Any = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    text: TextOptions | None = None
    stream_options: Any = None

    @property
    def messages(self) -> list[Message]:
        """The same as a chat."""
        found = [Message(role="system", content=self.instructions)] if self.instructions else []
        items = [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        return found + [_message(item) for item in items if isinstance(item, InputMessage)]


def _message(item: InputMessage) -> Message:
    if isinstance(item.content, str):
        return Message(role=item.role, content=item.content)
    parts: list[TextPart | ImagePart] = [
        TextPart(type="text", text=part.text)
        if isinstance(part, InputText)
        else ImagePart(type="image_url", image_url=ImageUrl(url=part.image_url, detail=part.detail))
        for part in item.content
    ]
    return Message(role=item.role, content=parts)


class Items:
    """A response as it grows: whole at its end, and every change of it an event."""

    def __init__(self, request: ResponsesRequest, question: Accepted, request_id: str):
        self._request, self._question, self._id = request, question, request_id
        self._visible = Visible(question.model.cot_format)
        self._created = int(time.time())
        self._number = 0
        self._begun: list[str] = []
        """Kinds of the items that were begun."""
        stages = question.model.cot_format.stages
        self._summary_stage = stages[0].name if len(stages) > 2 else None
        self._summary, self._summary_is_told = "", False

    end = b""

    def failed(self, error: ApiError) -> dict[str, Any]:
        """The last event of a stream that cannot go on."""
        told = error.body["error"]
        return self._event("error", code=told["code"], message=told["message"], param=told["param"])

    def response(self, status: str, completion: Completion | None = None) -> dict[str, Any]:
        """The response object."""
        found: dict[str, Any] = {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._request.model,
            "output": [],
            "error": None,
            "incomplete_details": None,
            "instructions": self._request.instructions,
            "metadata": {},
            "parallel_tool_calls": False,
            "temperature": self._request.temperature,
            "top_p": self._request.top_p,
            "tool_choice": "auto",
            "tools": [],
        }
        if completion is not None:
            found["output"] = self._output(completion)
            found["usage"] = _usage(self._question, completion)
            if finish_reason(completion, False) == "length":
                found |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        return found

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The response to a request without a stream."""
        self._visible.finish(completions[0].text)
        return self.response("completed", completions[0])

    def begin(self) -> list[dict[str, Any]]:
        """Before anything is written."""
        made = self.response("in_progress")
        return [self._event("response.created", response=made), self._event("response.in_progress", response=made)]

    def of(self, event: Event) -> list[dict[str, Any]]:
        """The events of what happened."""
        if isinstance(event, Text):
            return self._told(self._visible.feed(event.text, event.pass_format))
        if isinstance(event, Decided):
            return [] if self._question.streams_tokens else self._told(self._visible.feed_step(event.step))
        return self._end(event)

    def _told(self, deltas: Sequence[Delta]) -> list[dict[str, Any]]:
        events = []
        for delta in deltas:
            if delta.kind not in self._begun:
                events += self._close() + self._open(delta.kind)
            kind = "response.reasoning_text.delta" if delta.kind == "reasoning" else "response.output_text.delta"
            more: dict[str, Any] = {} if delta.kind == "reasoning" else {"logprobs": []}
            events += self._told_summary(delta)
            events.append(self._event(kind, **self._place, content_index=0, delta=delta.text, **more))
        return events

    def _told_summary(self, delta: Delta) -> list[dict[str, Any]]:
        """The same delta as one of the reasoning's summary, if it is; else the events that end the summary."""
        if delta.stage is None or delta.stage != self._summary_stage or self._summary_is_told:
            return self._end_summary()
        place = {**self._place, "summary_index": 0}
        part = {"type": "summary_text", "text": ""}
        added = [] if self._summary else [self._event("response.reasoning_summary_part.added", **place, part=part)]
        self._summary += delta.text
        return [*added, self._event("response.reasoning_summary_text.delta", **place, delta=delta.text)]

    def _end_summary(self) -> list[dict[str, Any]]:
        if not self._summary or self._summary_is_told:
            return []
        self._summary_is_told = True
        place, part = {**self._place, "summary_index": 0}, {"type": "summary_text", "text": self._summary}
        done = self._event("response.reasoning_summary_text.done", **place, text=self._summary)
        return [done, self._event("response.reasoning_summary_part.done", **place, part=part)]

    def _end(self, event: Done) -> list[dict[str, Any]]:
        completion = event.completions[0]
        events = self._told(self._visible.finish(completion.text))
        if "content" not in self._begun:
            events += self._close() + self._open("content")
        events += self._close()
        made = self.response("completed", completion)
        kind = "response.completed" if made["status"] == "completed" else "response.incomplete"
        return [*events, self._event(kind, response=made)]

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id(self._begun[-1]), "output_index": len(self._begun) - 1}

    def _item_id(self, kind: str) -> str:
        return f"{'rs' if kind == 'reasoning' else 'msg'}_{self._id}"

    def _open(self, kind: str) -> list[dict[str, Any]]:
        self._begun.append(kind)
        item = self._item(kind, "", "in_progress")
        part = {"type": "reasoning_text", "text": ""} if kind == "reasoning" else _text("")
        place = {"output_index": len(self._begun) - 1}
        return [
            self._event("response.output_item.added", item=item | {"content": []}, **place),
            self._event("response.content_part.added", **self._place, content_index=0, part=part),
        ]

    def _close(self) -> list[dict[str, Any]]:
        """The events that end the item that was begun last."""
        if not self._begun:
            return []
        summary, kind = self._end_summary(), self._begun[-1]
        text = self._visible.reasoning if kind == "reasoning" else self._visible.content
        item = self._item(kind, text, "completed")
        name = "response.reasoning_text.done" if kind == "reasoning" else "response.output_text.done"
        more: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
        done = self._event(name, **self._place, content_index=0, text=text, **more)
        part = self._event("response.content_part.done", **self._place, content_index=0, part=item["content"][0])
        ended = self._event("response.output_item.done", item=item, output_index=len(self._begun) - 1)
        return [*summary, done, part, ended]

    def _item(self, kind: str, text: str, status: str) -> dict[str, Any]:
        if kind == "reasoning":
            content = [{"type": "reasoning_text", "text": text}]
            summary = [{"type": "summary_text", "text": self._summary}] if self._summary_is_told else []
            return {"id": self._item_id(kind), "type": "reasoning", "summary": summary, "content": content, "status": status}
        head = {"id": self._item_id(kind), "type": "message", "role": "assistant", "status": status}
        return {**head, "content": [_text(text)]}

    def _output(self, completion: Completion) -> list[dict[str, Any]]:
        items = []
        if reasoning := self._visible.reasoning:
            item = self._item("reasoning", reasoning, "completed")
            summary = completion.parsed.get(self._summary_stage) if self._summary_stage else None
            if summary is not None and summary.text:
                item["summary"] = [{"type": "summary_text", "text": summary.text}]
            if self._request.returned != "answer":
                item["stages"] = stages(completion, self._request.returned == "trace")
            items.append(item)
        return [*items, self._item("content", self._visible.content, "completed")]

    def _event(self, kind: str, **values: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **values}


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(question: Accepted, completion: Completion) -> dict[str, Any]:
    found = usage(question, [completion])
    return {
        "input_tokens": found["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": found["completion_tokens"],
        "output_tokens_details": found["completion_tokens_details"],
        "total_tokens": found["total_tokens"],
        "search": found["search"],
    }
