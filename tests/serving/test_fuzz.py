"""Whatever is sent is answered or refused in OpenAI's envelope: never a 500, and the engine lives on."""

import json

import psutil
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.serving.conftest import FOUR_STAGE, chat, data_uri
from tests.serving.from_schema import FromSchema
from tests.serving.test_errors import INSIDE

WILD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(-2, 2), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.sampled_from(["<image>", "</SUMMARY>", "../../etc/passwd", "\x00", "stage_beam", 10**18, -1, 1e308, data_uri()]),
)
URLS = st.sampled_from([data_uri(), data_uri(), data_uri((9, 4), kind="JPEG"), "x", "http://10.0.0.1", "file:///etc/passwd"])
KNOWN = {
    "model": st.sampled_from(["four_stage"] * 9 + ["two_stage", "nope"]),
    "role": st.sampled_from(["user"] * 4 + ["assistant", "system", "developer"]),
    "names": st.sampled_from(["SUMMARY", "CAPTION", "CONCLUSION", "NOPE"]),
    "url": URLS,
    "stream": st.booleans(),
}
CHAT = "/v1/chat/completions"
ROUTES = {CHAT: "ChatRequest", "/v1/responses": "ResponsesRequest"}
GOOD = {"/v1/chat/completions": {"messages": chat(image=data_uri())["messages"]}, "/v1/responses": {"input": "What is it?"}}
BRIEF = {"stages": {stage.name: {"max_new_tokens": 2} for stage in FOUR_STAGE.stages}}
SMALL = {"context": 100, "max_candidates": 4, "formats": ("four_stage", "two_stage"), "search": BRIEF}
"""A server whose answers are short, whatever is asked for."""


def check(client, path, body):
    response = client.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404), (path, body, response.text)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"} and not INSIDE.search(response.text)
    assert client.service.scheduler.is_healthy
    assert (client.service.admission.requests, client.service.admission.bytes) == (0, 0)
    return response.status_code


def fuzz(client, path, count, number=0):
    """The statuses; another number makes other requests."""
    document = client.get("/openapi.json").json()
    bodies = FromSchema(document, KNOWN, WILD).valid({"$ref": f"#/components/schemas/{ROUTES[path]}"})
    bodies |= bodies.map(lambda body: (body if isinstance(body, dict) else {}) | {"model": "four_stage", **GOOD[path]})
    keys = {"max_examples": count, "deadline": None, "suppress_health_check": list(HealthCheck)}
    statuses = []

    @seed(number)
    @settings(**keys, derandomize=False, database=None)
    @given(bodies)
    def run(body):
        statuses.append(check(client, path, body))

    run()
    return statuses


@pytest.mark.parametrize("path", [CHAT, *(pytest.param(path, marks=pytest.mark.slow) for path in ROUTES if path != CHAT)])
def test_wild_requests(serve, path):
    """A hundred of each, of what our own description allows, and of what it nearly allows; some of them are answered."""
    statuses = fuzz(serve(**SMALL), path, 100)
    assert {200, 400} <= set(statuses) and statuses.count(200) > 10


@pytest.mark.slow
def test_ten_thousand_wild_requests_and_no_growth(serve):
    """Memory after the first thousand is memory at the end, to a few per cent."""
    client, process = serve(**SMALL), psutil.Process()
    fuzz(client, "/v1/chat/completions", 1000)
    before = process.memory_info().rss
    for number in range(1, 10):
        fuzz(client, list(ROUTES)[number % 2], 1000, number)
    assert process.memory_info().rss < before * 1.1 + 30e6
    assert client.post("/v1/chat/completions", json=chat()).status_code == 200
