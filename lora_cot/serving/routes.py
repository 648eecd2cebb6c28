"""The two routes that answer: chat completions and responses."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from lora_cot.search.trace import Completion
from lora_cot.serving.answers import ChatChunks
from lora_cot.serving.description import body_of
from lora_cot.serving.errors import ApiError, of_failure, of_request, place_of
from lora_cot.serving.events import Accepted, Event, Wanted
from lora_cot.serving.gate import log
from lora_cot.serving.limits import Place
from lora_cot.serving.responses import Items, ResponsesRequest
from lora_cot.serving.schema import ChatRequest
from lora_cot.serving.service import Service
from lora_cot.serving.streams import EventStream, GoneError, unless_gone

Body = TypeVar("Body", ChatRequest, ResponsesRequest)


class Teller(Protocol):
    """Spells an answer as one API does."""

    end: bytes
    """Last in a stream."""

    def begin(self) -> list[dict[str, Any]]:
        """What a stream begins with."""

    def of(self, event: Event) -> list[dict[str, Any]]:
        """What it tells of an event."""

    def failed(self, error: ApiError) -> dict[str, Any]:
        """What it tells of an error."""

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The answer in one piece."""


@dataclass(frozen=True)
class Api(Generic[Body]):
    """One of the two ways to ask."""

    kind: type[Body]
    wanted: Callable[[Body, float], Wanted]
    """From a body, and when it came, to what is asked for."""
    teller: Callable[[Body, Accepted, str], Teller]
    """Of a body, its question and its id."""


def answer_routes(app: FastAPI, service: Service) -> None:
    """Add them."""

    @app.post("/v1/chat/completions", response_model=None, openapi_extra=body_of(ChatRequest))
    async def chat(request: Request) -> Any:
        return await _or_error(request, _answer(service, request, CHAT))

    @app.post("/v1/responses", response_model=None, openapi_extra=body_of(ResponsesRequest))
    async def responses(request: Request) -> Any:
        return await _or_error(request, _answer(service, request, RESPONSES))


async def _or_error(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The answer, or the error in its place."""
    request_id = request.scope["request_id"]
    try:
        return await work
    except GoneError:
        return Response(status_code=499)  # to nobody
    except Exception as error:
        told = of_failure(error, request_id)
        if told.status >= 500 and not isinstance(error, ApiError):
            log.error("request %s failed: %s", request_id, place_of(error))
        return error_response(told)


def error_response(error: ApiError) -> JSONResponse:
    """An error as a whole answer."""
    return JSONResponse(error.body, error.status, error.headers)


def _chat(asked: ChatRequest, arrived: float) -> Wanted:
    most = min((tokens for tokens in (asked.max_completion_tokens, asked.max_tokens) if tokens is not None), default=None)
    sampling = {"temperature": asked.temperature, "top_p": asked.top_p, "seed": asked.seed}
    effort, n = asked.reasoning_effort, asked.n or 1
    return Wanted(asked.model, asked.messages, asked.search, effort, sampling, most, n, asked.stream, arrived)


def _responses(asked: ResponsesRequest, arrived: float) -> Wanted:
    sampling = {"temperature": asked.temperature, "top_p": asked.top_p}
    effort = asked.reasoning.effort if asked.reasoning else None
    most = asked.max_output_tokens
    return Wanted(asked.model, asked.messages, asked.search, effort, sampling, most, 1, asked.stream, arrived)


CHAT = Api(ChatRequest, _chat, ChatChunks)
RESPONSES = Api(ResponsesRequest, _responses, Items)


async def _answer(service: Service, request: Request, api: Api[Body]) -> Any:
    """The answer in one piece, or its stream once it has begun: an error until then is a status."""
    arrived, place = time.monotonic(), service.admission.enter()
    try:
        asked = await read_body(service, request, api.kind, place)
        run = await unless_gone(request, service.begin(api.wanted(asked, arrived), place))
    except BaseException:
        place.leave()
        raise
    request_id, limits = request.scope["request_id"], service.limits
    try:
        tells = api.teller(asked, run.question, request_id)
        if not asked.stream:
            return JSONResponse(tells.whole(await unless_gone(request, run.result())))
        first = await unless_gone(request, run.next())
    except BaseException:
        run.cancel()
        raise

    def encode(event: Event) -> bytes:
        return b"".join(map(sse, tells.of(event)))

    def failed(error: BaseException) -> bytes:
        told = of_failure(error, request_id)
        if not isinstance(error, ApiError):
            log.error("request %s failed in its stream: %s", request_id, place_of(error))
        return sse(tells.failed(told))

    begin = b"".join(map(sse, tells.begin()))
    return EventStream(run, first, encode, begin, tells.end, failed, limits.ping_seconds, limits.send_seconds)


def sse(value: dict[str, Any]) -> bytes:
    """One server-sent event; it has a name where the value says its type."""
    name = f"event: {value['type']}\n".encode() if "type" in value else b""
    return name + b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


async def read_body(service: Service, request: Request, kind: type[Body], place: Place) -> Body:
    """The request's body, of bounded size and in bounded time; its bytes are counted as they come.

    Raises:
        ApiError: it is too large, too slow, no JSON, or not what is expected; 503: too many bytes are held for others.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "expected Content-Type: application/json")
    most = service.limits.max_body_bytes
    too_large = ApiError(413, f"a body of more than {most:,} bytes", "request_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(service.limits.body_seconds):
            async for piece in request.stream():
                if len(data) + len(piece) > most:
                    raise too_large
                place.hold(len(piece))
                data += piece
    except TimeoutError:
        raise ApiError(408, "the body took too long to arrive") from None
    except ClientDisconnect:
        raise GoneError from None
    try:
        return await asyncio.to_thread(kind.model_validate_json, bytes(data))
    except ValidationError as error:
        raise of_request(error) from None
