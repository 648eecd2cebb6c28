"""`/openapi.json` is whole and true."""

import pytest
from pydantic import ValidationError

from lora_cot.serving.responses import ResponsesRequest
from lora_cot.serving.schema import ChatRequest


@pytest.fixture
def document(serve):
    return serve().get("/openapi.json").json()


def refs(value):
    if isinstance(value, dict):
        yield from (value[name] for name in ("$ref",) if isinstance(value.get(name), str))
        yield from value.get("mapping", {}).values() if "propertyName" in value else ()
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from refs(one)


def test_every_reference_leads_somewhere(document):
    """And every schema is used."""
    named = {ref.removeprefix("#/components/schemas/") for ref in refs(document)}
    assert named == set(document["components"]["schemas"]) and "$defs" not in str(document)


def test_every_route_is_there_with_its_error(document, serve):
    """The errors as they are told, and no other form of them."""
    assert set(document["paths"]) == {
        "/v1/chat/completions", "/v1/responses", "/v1/models", "/v1/models/{name}", "/health", "/ready", "/metrics",
    }  # fmt: skip
    for operations in document["paths"].values():
        for operation in operations.values():
            assert set(operation["responses"]) == {"200", "default"}
    error = document["components"]["schemas"]["Error"]["properties"]["error"]
    told = serve().post("/v1/chat/completions", json={}).json()["error"]
    assert set(error["required"]) == set(error["properties"]) == set(told)


@pytest.mark.parametrize(("path", "kind"), [("/v1/chat/completions", ChatRequest), ("/v1/responses", ResponsesRequest)])
def test_a_body_is_described_as_it_is_checked(document, path, kind):
    """The named schema is that of the model which reads it, each key and each rule that the schema language has."""
    body = document["paths"][path]["post"]["requestBody"]
    assert body["required"] and list(body["content"]) == ["application/json"]
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    told = document["components"]["schemas"][name]
    assert (
        name == kind.__name__ and set(told["properties"]) == set(kind.model_fields) and told["additionalProperties"] is False
    )
    for wrong in ({}, {"model": "x", "extra": 1}, {"model": "x", "text": {"format": {"type": "json_object"}}}):
        with pytest.raises(ValidationError):
            kind.model_validate_json(str(wrong).replace("'", '"'))
