"""What a server's chat completions and its list of models say, as plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import BaseModel, Field


@dataclass(frozen=True)
class Token:
    """One generated token as a server tells it."""

    text: str
    logprob: float
    """In nats. As it was sent: not checked to be a number."""
    top: tuple[tuple[str, float], ...] = ()
    """Text and log-probability of the likeliest tokens at its place."""


@dataclass(frozen=True)
class Reply:
    """One choice of a chat completion."""

    text: str
    finish_reason: str = ""
    """stop, length, content_filter, …"""
    refusal: str = ""
    """The server's own words for why it does not answer."""
    stopped_at: str | int | None = None
    """The stop string or the number of the end token that ended it, where the server tells (vLLM, SGLang)."""
    tokens: tuple[Token, ...] | None = field(default=None, repr=False)
    """None if it gave no log-probabilities."""


@dataclass(frozen=True)
class Answer:
    """A whole chat completion."""

    replies: list[Reply]
    """At least one."""
    model: str | None = None
    """The name of what answered, as the server tells it."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """Of all choices together."""


@dataclass(frozen=True)
class ListedModel:
    """A model in a server's list."""

    id: str
    """The name that it is asked for by."""
    root: str | None = None
    """The folder or hub id that it was loaded from, where the server tells (vLLM, SGLang)."""


class _Top(BaseModel):
    token: str
    logprob: float


class _Token(_Top):
    top_logprobs: list[_Top] | None = None


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    matched_stop: str | int | None = None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = Field(None, ge=0)
    completion_tokens: int | None = Field(None, ge=0)


class _Completion(BaseModel):
    model: str | None = None
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class _Models(BaseModel):
    data: list[ListedModel]


def read_models(data: bytes) -> list[ListedModel]:
    """A list of models.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return _Models.model_validate_json(data).data


def read_answer(data: bytes, hide: Callable[[str], str]) -> Answer:
    """A chat completion.

    Args:
        data: the answer's body.
        hide: takes out of a text what must not be told.

    Raises:
        pydantic.ValidationError: it is none.
    """
    found = _Completion.model_validate_json(data)
    usage = found.usage or _Usage()
    replies = [_reply(choice, hide) for choice in found.choices]
    name = None if found.model is None else hide(found.model)
    return Answer(replies, name, usage.prompt_tokens, usage.completion_tokens)


def _reply(choice: _Choice, hide: Callable[[str], str]) -> Reply:
    at = choice.matched_stop if choice.stop_reason is None else choice.stop_reason
    listed = choice.logprobs.content if choice.logprobs else None
    tokens = None if listed is None else tuple(_token(token) for token in listed)
    message = choice.message
    return Reply(hide(message.content or ""), choice.finish_reason or "", hide(message.refusal or ""), at, tokens)


def _token(token: _Token) -> Token:
    return Token(token.token, token.logprob, tuple((top.token, top.logprob) for top in token.top_logprobs or ()))
