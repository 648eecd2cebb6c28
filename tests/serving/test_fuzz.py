"""Whatever is sent is answered or refused in OpenAI's envelope: never a 500, and the engine lives on."""

import json

import psutil
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.serving.conftest import chat, data_uri
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
STAGES = st.sampled_from(["SUMMARY", "CAPTION", "CONCLUSION", "NOPE"])
STRATEGIES = ["greedy", "sample", "majority", "best_of_n", "sentence_beam", "stage_beam", "adaptive", "swires"]
STAGE = st.fixed_dictionaries({}, optional={"candidates": st.integers(0, 4), "max_tokens": WILD})
SEARCH = st.fixed_dictionaries(
    {},
    optional={
        "strategy": st.sampled_from(STRATEGIES),
        "candidates": st.integers(0, 5) | WILD,
        "keep": st.integers(1, 3) | WILD,
        "scorer": st.sampled_from(["logprob", "pairwise", "self_judge", "reward"]) | WILD,
        "weighted": st.booleans(),
        "stages": st.dictionaries(STAGES, STAGE),
        "max_tokens": st.integers(1, 40) | WILD,
        "deadline_s": st.floats(0.001, 2) | WILD,
        "return": st.sampled_from(["answer", "stages", "trace"]) | WILD,
    },
)
CONTENT = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.one_of(
            st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=30)),
            st.builds(
                lambda url: {"type": "image_url", "image_url": {"url": url}},
                st.sampled_from([data_uri(), "x", "http://10.0.0.1"]),
            ),
            WILD,
        ),
        max_size=3,
    ),
    WILD,
)
ROLES = st.sampled_from(["user", "assistant", "system"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": CONTENT}), max_size=3)
GOOD = {"model": st.just("four_stage"), "messages": MESSAGES | st.just(chat()["messages"])}
FIELDS = {
    "search": SEARCH | WILD,
    "temperature": st.floats(0, 2) | WILD,
    "top_p": st.floats(0.01, 1) | WILD,
    "n": st.integers(1, 3) | WILD,
    "max_tokens": st.integers(1, 12) | WILD,
    "seed": st.integers(0, 9) | WILD,
    "stop": st.lists(st.text(min_size=1, max_size=3), max_size=2) | WILD,
    "stream": st.booleans(),
    "reasoning_effort": st.sampled_from(["none", "low", "medium", "high"]) | WILD,
    "include_reasoning": st.booleans() | WILD,
    "stream_options": st.just({"include_usage": True}) | WILD,
    "surprise": WILD,
}
REQUESTS = st.fixed_dictionaries(GOOD, optional=FIELDS)


def check(client, body):
    content = json.dumps(body).encode()
    response = client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404), (body, response.text)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"} and not INSIDE.search(response.text)
    assert client.service.scheduler.is_healthy and client.service.admission.requests == 0
    return response.status_code


def fuzz(client, count, number=0):
    """The statuses; another number makes other requests."""
    statuses = []
    keys = {"max_examples": count, "deadline": None, "suppress_health_check": list(HealthCheck)}

    @seed(number)
    @settings(**keys, derandomize=False, database=None)
    @given(REQUESTS)
    def run(body):
        statuses.append(check(client, body))

    run()
    return statuses


def test_wild_requests(serve):
    """A few hundred; some of them are answered."""
    statuses = fuzz(serve(), 200)
    assert {200, 400} <= set(statuses)


@pytest.mark.slow
def test_ten_thousand_wild_requests_and_no_growth(serve):
    """Memory after the first thousand is memory at the end, to a few per cent."""
    client, process = serve(), psutil.Process()
    fuzz(client, 1000)
    before = process.memory_info().rss
    for number in range(1, 10):
        fuzz(client, 1000, number)
    assert process.memory_info().rss < before * 1.1 + 30e6
    assert client.post("/v1/chat/completions", json=chat()).status_code == 200
