"""What a request may hold. Types are strict, numbers finite, lengths bounded; what cannot be honoured is refused.

Keys of OpenAI's API that change no text (`user`, `metadata`, …) are taken and ignored; those that would change it and are
not offered here (`tools`, `logprobs`, penalties, …) are refused unless they are at their defaults. Any other key is an
error that names it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lora_cot.recipe.search import StrategyName

Effort = Literal["none", "minimal", "low", "medium", "high"]
Returned = Literal["answer", "stages", "trace"]
Stop = Annotated[str, Field(min_length=1, max_length=64)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class Strict(BaseModel):
    """Any other key is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Loose(BaseModel):
    """Clients send back whatever a message held: reasoning, stages, annotations."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class ImageUrl(Strict):
    """Where an image is."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None
    """Taken and ignored: an image is shown as the model was trained to see it."""


class ImagePart(Strict):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Loose):
    """Text in a message."""

    type: Literal["text"]
    text: str


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Loose):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=100)] | None = None


class StageOptions(Strict):
    """Settings of one stage that differ from the rest."""

    candidates: int | None = Field(None, ge=1, le=64)
    keep: int | None = Field(None, ge=1, le=64)
    max_tokens: Tokens | None = None
    temperature: float | None = Field(None, ge=0, le=2)


class SearchOptions(Strict):
    """How the answer is looked for; what is not given is the preset's, or the model's own."""

    strategy: StrategyName | None = None
    candidates: int | None = Field(None, ge=1, le=64)
    keep: int | None = Field(None, ge=1, le=64)
    scorer: Literal["logprob", "self_judge", "pairwise", "reward"] | None = None
    """pairwise is self_judge; reward is the model's own, if it has one."""
    weighted: bool | None = None
    stages: dict[Name, StageOptions] = Field({}, max_length=20)
    max_tokens: Tokens | None = None
    """Of all candidates together."""
    deadline_s: float | None = Field(None, gt=0, le=86_400)
    returned: Returned = Field("stages", alias="return")
    """answer: nothing but the text; trace: every candidate, score and comparison of each stage."""


class StreamOptions(Loose):
    """Of a stream."""

    include_usage: bool = False


class Sampled(Strict):
    """What both kinds of request share."""

    model: Name
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    search: SearchOptions | None = None

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    parallel_tool_calls: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    top_logprobs: Literal[0] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None

    @property
    def returned(self) -> Returned:
        """What is told beside the text."""
        return self.search.returned if self.search else "stages"


class ResponseFormat(Strict):
    """Text is all there is."""

    type: Literal["text"]


class ChatRequest(Sampled):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=200)
    stream_options: StreamOptions | None = None
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=16)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    reasoning_effort: Effort | None = None
    include_reasoning: bool | None = None
    separate_reasoning: bool | None = None

    verbosity: Any = None
    logprobs: Literal[False] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Literal["none", "auto"] | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None

    @field_validator("stop")
    @classmethod
    def _listed(cls, value: str | list[str] | None) -> list[str]:
        return [value] if isinstance(value, str) else value or []

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end the visible text."""
        return tuple(self.stop or ())

    @property
    def with_reasoning(self) -> bool:
        """Whether stages are told apart; else the tagged text is the content."""
        return self.include_reasoning is not False and self.separate_reasoning is not False
