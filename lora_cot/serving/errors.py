"""Errors as OpenAI's clients know them. No text here holds a path, an address or a traceback."""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from lora_cot.errors import DataError, EngineError, LoraCotError, RejectedError, SearchError
from lora_cot.search.trace import Completion, TracedStage
from lora_cot.serving.faults import is_lost, is_out_of_memory

KINDS = {401: "authentication_error", 404: "not_found_error", 500: "server_error", 503: "server_error"}
MOST_CHARACTERS = 500
MOST_CAUSES, MOST_FRAMES = 4, 12
"""Of an error in the log."""

NO_ANSWER = "the engine gave no answer"


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, retry_after: float | None = None
    ):
        """
        Args:
            status: of HTTP.
            message: what is wrong, what is allowed.
            code: one of OpenAI's or of docs/serving.md's.
            param: dotted key of the request that it is about.
            retry_after: seconds after which it is worth another try.
        """
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's envelope."""
        kind = KINDS.get(self.status, "invalid_request_error")
        message = str(self)[:MOST_CHARACTERS]
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Of HTTP."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}


def place_of(error: BaseException) -> str:
    """Type and place of an error and of what led to it, for the log: without its text, which may quote what a user wrote."""
    found: list[str] = []
    following: BaseException | None = error
    while following is not None and len(found) < MOST_CAUSES:
        frames = [f"{frame.f_code.co_filename}:{line}" for frame, line in traceback.walk_tb(following.__traceback__)]
        found.append(f"{type(following).__qualname__} at {' > '.join(frames[-MOST_FRAMES:]) or 'no place'}")
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return "; after ".join(found)


def of_request(error: ValidationError) -> ApiError:
    """What is wrong with a request's body: the first mistake."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is no JSON", "invalid_json")
    return ApiError(400, f"{place}: {first['msg']}{more}" if place else first["msg"], "invalid_value", place or None)


def of_failure(error: BaseException, request_id: str) -> ApiError:
    """What a client is told of anything that was raised; the rest stands in the log under the request's id."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DataError):
        kind = error.problems[0].kind
        code = "image_too_large" if kind == "image_size" else "invalid_image" if kind.startswith("image") else "invalid_value"
        return ApiError(400, _said(error), code, "messages")
    if isinstance(error, SearchError):
        return ApiError(400, _said(error), "invalid_value", "search")
    if isinstance(error, RejectedError):
        return ApiError(400, f"the model server takes this request for wrong (request {request_id})", "invalid_value")
    if isinstance(error, EngineError):
        return ApiError(503, f"the model server gives no answer (request {request_id})", "engine_unavailable", None, 5)
    if is_lost(error):
        return ApiError(503, f"the engine is out of order (request {request_id})", "engine_unavailable", None, 30)
    if is_out_of_memory(error):
        return ApiError(503, f"the model ran out of memory (request {request_id})", "engine_unavailable", None, 1)
    return ApiError(500, f"internal error (request {request_id})", "internal_error")


def _said(error: LoraCotError) -> str:
    """The problems without where they are: what stands there is ours."""
    return "; ".join(" · ".join(filter(None, (problem.what, problem.remedy))) for problem in error.problems)


def told(step: TracedStage) -> TracedStage:
    """A step without the engine's own words for a fault: they may say where it is, or quote what it was asked."""
    candidates = tuple(replace(one, problem=NO_ANSWER) if one.problem else one for one in step.candidates)
    comparisons = tuple(replace(one, said=NO_ANSWER) if one.failed and one.said else one for one in step.comparisons)
    return replace(step, candidates=candidates, comparisons=comparisons)


def told_whole(completion: Completion) -> Completion:
    """The same of a whole search."""
    problems = [one.problem for step in completion.trace for one in step.candidates if one.problem]
    is_fault = any(problem in completion.stopped for problem in problems)
    stopped = NO_ANSWER if is_fault else completion.stopped
    return replace(completion, trace=[told(step) for step in completion.trace], stopped=stopped)
