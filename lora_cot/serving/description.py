"""What `/openapi.json` says: the bodies that are taken, and the one form of every error."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from lora_cot.serving.responses import ResponsesRequest
from lora_cot.serving.schema import ChatRequest

TEMPLATE = "#/components/schemas/{model}"
_TEXT_OR_NULL = {"type": ["string", "null"]}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
        }
    },
}


def body_of(kind: type[ChatRequest] | type[ResponsesRequest]) -> dict[str, Any]:
    """A route's body and answer; `describe` adds the schemas that are named."""
    schema = {"$ref": TEMPLATE.format(model=kind.__name__)}
    answer = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
    return {
        "requestBody": {"content": {"application/json": {"schema": schema}}, "required": True},
        "responses": {"200": {"description": "The answer; with `stream`, server-sent events", "content": answer}},
    }


def describe(app: FastAPI) -> None:
    """Make the application's own description true: it knows neither our bodies nor our errors."""
    plain, kinds = app.openapi, (ChatRequest, ResponsesRequest)
    schema = {"$ref": TEMPLATE.format(model="Error")}
    error = {"description": "An error", "content": {"application/json": {"schema": schema}}}

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            _, bodies = models_json_schema([(kind, "validation") for kind in kinds], ref_template=TEMPLATE)
            document["components"] = {"schemas": {**bodies["$defs"], "Error": _ERROR}}
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    operation["responses"]["default"] = error
        return plain()

    app.openapi = openapi  # type: ignore[method-assign]
