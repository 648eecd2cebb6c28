"""The server's surface: OpenAI's routes, health and metrics, and the page."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from lora_cot.serving.description import describe
from lora_cot.serving.errors import ApiError, of_failure
from lora_cot.serving.gate import Gate
from lora_cot.serving.page_files import PAGE, page_routes
from lora_cot.serving.routes import answer_routes, error_response
from lora_cot.serving.service import Service


def make_app(service: Service, key: str | None = None, hosts: Collection[str] | None = None, page: Path = PAGE) -> ASGIApp:
    """The server as an ASGI application.

    Args:
        service: its models.
        key: asked for on every route but `/health` and the page's own files.
        hosts: see `Gate`.
        page: folder of the page.
    """
    app = FastAPI(title="lora_cot", docs_url=None, redoc_url=None, redirect_slashes=False)
    answer_routes(app, service)
    _model_routes(app, service)
    _state_routes(app, service)
    public = page_routes(app, page)
    describe(app)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        words = {404: "no such address", 405: "this address takes another method"}
        return error_response(ApiError(error.status_code, words.get(error.status_code, "it is refused")))

    @app.exception_handler(Exception)
    async def told(request: Request, error: Exception) -> JSONResponse:
        return error_response(of_failure(error, request.scope["request_id"]))

    return Gate(app, key, hosts, ("/health", *public), lambda status: service.metrics.requests.labels(str(status)).inc())


def _model_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        listed = [model.to_json(service.limits.max_candidates) for model in service.models.values()]
        return {"object": "list", "data": listed}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        try:
            return JSONResponse(service.model(name).to_json(service.limits.max_candidates))
        except ApiError as error:
            return error_response(error)


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
