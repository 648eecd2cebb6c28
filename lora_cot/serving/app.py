"""The server's surface: OpenAI's routes, health and metrics, and the page."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from lora_cot.serving.answers import ChatChunks, chat_completion
from lora_cot.serving.errors import ApiError, of_failure, of_request
from lora_cot.serving.gate import Gate, log
from lora_cot.serving.page_files import PAGE, page_routes
from lora_cot.serving.schema import ChatRequest
from lora_cot.serving.service import Event, Service, Wanted
from lora_cot.serving.streams import EventStream, GoneError, unless_gone

Body = TypeVar("Body", bound=BaseModel)


def make_app(service: Service, key: str | None = None, hosts: Collection[str] | None = None, page: Path = PAGE) -> ASGIApp:
    """The server as an ASGI application.

    Args:
        service: its models.
        key: asked for on every route but `/health` and the page's own files.
        hosts: see `Gate`.
        page: folder of the page.
    """
    app = FastAPI(title="lora_cot", docs_url=None, redoc_url=None, redirect_slashes=False)
    _api_routes(app, service)
    _state_routes(app, service)
    public = page_routes(app, page)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        words = {404: "no such address", 405: "this address takes another method"}
        return _error(ApiError(error.status_code, words.get(error.status_code, "it is refused")))

    @app.exception_handler(Exception)
    async def told(request: Request, error: Exception) -> JSONResponse:
        return _error(of_failure(error, request.scope["request_id"]))

    return Gate(app, key, hosts, ("/health", *public), lambda status: service.metrics.requests.labels(str(status)).inc())


def _api_routes(app: FastAPI, service: Service) -> None:
    body = {"content": {"application/json": {"schema": ChatRequest.model_json_schema()}}, "required": True}

    @app.post("/v1/chat/completions", response_model=None, openapi_extra={"requestBody": body})
    async def chat(request: Request) -> Any:
        return await _answered(request, _chat(service, request))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        listed = [model.to_json(service.limits.max_candidates) for model in service.models.values()]
        return {"object": "list", "data": listed}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        try:
            return JSONResponse(service.model(name).to_json(service.limits.max_candidates))
        except ApiError as error:
            return _error(error)


def _state_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        return _state(service.is_healthy)

    @app.get("/ready")
    async def ready() -> JSONResponse:
        return _state(service.is_ready)

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        text = service.metrics.text(service.load, service.admission.requests, service.admission.tokens)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _state(is_good: bool) -> JSONResponse:
    return JSONResponse({"status": "ok" if is_good else "unavailable"}, 200 if is_good else 503)


def _error(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)


async def _answered(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The answer, or the error in its place."""
    request_id = request.scope["request_id"]
    try:
        return await work
    except GoneError:
        return Response(status_code=499)  # to nobody
    except Exception as error:
        told = of_failure(error, request_id)
        if told.status >= 500 and not isinstance(error, ApiError):
            log.error("request %s failed", request_id, exc_info=error)
        return _error(told)


async def _chat(service: Service, request: Request) -> Any:
    arrived = time.monotonic()
    asked = await read_body(service, request, ChatRequest)
    most = [tokens for tokens in (asked.max_completion_tokens, asked.max_tokens) if tokens is not None]
    sampling = {"temperature": asked.temperature, "top_p": asked.top_p, "seed": asked.seed}
    wanted = Wanted(
        asked.model,
        asked.messages,
        asked.search,
        asked.reasoning_effort,
        sampling,
        min(most, default=None),
        asked.n or 1,
        asked.stream,
        arrived,
    )
    request_id = request.scope["request_id"]
    run = await unless_gone(request, service.begin(wanted))
    try:
        if not asked.stream:
            completions = await unless_gone(request, run.result())
            return JSONResponse(chat_completion(asked, run.question, completions, request_id))
        chunks = ChatChunks(asked, run.question, request_id)
        first = await unless_gone(request, run.next())
    except BaseException:
        run.cancel()
        raise

    def encode(event: Event) -> bytes:
        return b"".join(map(sse, chunks.of(event)))

    def failed(error: BaseException) -> bytes:
        return sse(of_failure(error, request_id).body)

    begin = b"".join(map(sse, chunks.begin()))
    limits = service.limits
    return EventStream(run, first, encode, begin, b"data: [DONE]\n\n", failed, limits.ping_seconds, limits.send_seconds)


def sse(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


async def read_body(service: Service, request: Request, kind: type[Body]) -> Body:
    """The request's body, of bounded size and in bounded time.

    Raises:
        ApiError: it is too large, too slow, no JSON, or not what is expected.
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
                data += piece
                if len(data) > most:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, "the body took too long to arrive") from None
    try:
        return await asyncio.to_thread(kind.model_validate_json, bytes(data))
    except ValidationError as error:
        raise of_request(error) from None
