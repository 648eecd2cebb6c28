"""The same server before another one that runs the model: stages, searches, streams; its faults are told as ours."""

import asyncio
import time

import pytest
from starlette.testclient import TestClient

from lora_cot.engines.chat import Patience
from lora_cot.engines.remote import RemoteEngine
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.serving.app import make_app
from lora_cot.serving.limits import Limits
from lora_cot.serving.remote import served_remote
from lora_cot.serving.schema import Message
from lora_cot.serving.service import Service, Wanted
from tests.openai_fake import FakeOpenAI
from tests.scripted_server import Fault, serve
from tests.serving.conftest import chat, chunks, data_uri

FOUR = FORMATS["four_stage"]
BEAM = {"strategy": "stage_beam", "candidates": 3, "scorer": "pairwise", "return": "trace"}


@pytest.fixture
def script():
    """What the model's server answers; a test may put a fault there, or how many requests come before it."""
    return {"fault": None, "before": 0}


@pytest.fixture
def client(script):
    """Ours before it."""
    fake = FakeOpenAI()

    def answer(body, number):
        script["before"] -= bool(script["fault"])
        return script["fault"] if script["fault"] and script["before"] < 0 else fake(body, number)

    with serve(answer) as behind:
        behind.models = ["tiny"]
        engine = RemoteEngine.open(behind.url, FOUR, "tiny", patience=Patience(timeout_seconds=5, tries=1))
        model = served_remote("four_stage", engine, FOUR, SearchSection())
        service = Service([model], Limits())
        with TestClient(make_app(service), raise_server_exceptions=False) as made:
            made.service = service
            yield made


@pytest.mark.parametrize("search", [{}, BEAM], ids=["plain", "beam"])
@pytest.mark.parametrize("stops", [[], ["circles", "Yes"]], ids=["whole", "stop"])
def test_stages_arrive_as_they_are_decided(client, search, stops):
    """The conclusion is the content, the stages before it the reasoning; a stream says the same."""
    keys = {"seed": 4, "search": search, "stop": stops, "image": data_uri()}
    body = client.post("/v1/chat/completions", json=chat(**keys)).json()
    (choice,) = body["choices"]
    message = choice["message"]
    assert [stage["name"] for stage in message["stages"]] == [stage.name for stage in FOUR.stages]
    assert all(stage["complete"] for stage in message["stages"]) and "fault" not in message
    *before, last = (stage["text"] for stage in message["stages"])
    assert message["reasoning_content"] == message["reasoning"] == "\n\n".join(before)
    assert last.startswith(message["content"]) and not any(stop in message["content"] for stop in stops)
    assert choice["finish_reason"] == "stop"
    usage = body["usage"]
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]
    streamed = chunks(client.post("/v1/chat/completions", json=chat(stream=True, **keys)))
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed]
    for field in ("content", "reasoning_content"):
        assert "".join(delta.get(field, "") for delta in deltas) == message[field]
    if search:
        shown = [delta["stage"] for delta in deltas if "stage" in delta]
        assert [stage["name"] for stage in shown] == [stage.name for stage in FOUR.stages]
        assert all(len(stage["candidates"]) == 3 for stage in shown)
        assert sum(candidate["chosen"] for stage in shown for candidate in stage["candidates"]) == 4
        assert usage["search"]["generated_tokens"] > usage["completion_tokens"] and usage["search"]["calls"]["judge"]
        assert message["stages"][0]["scored_by"] == "wins" and len(message["trace"]["steps"]) == 4


def test_a_server_that_is_gone_is_unavailable(client, script):
    """503, with a time to come back, and nothing of where it is."""
    script["fault"] = Fault(500, "secret at http://10.0.0.1/x")
    response = client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 503 and response.json()["error"]["code"] == "engine_unavailable"
    assert response.headers["retry-after"] and "10.0.0.1" not in response.text and "127.0.0.1" not in response.text
    script["fault"] = None
    assert client.post("/v1/chat/completions", json=chat()).status_code == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_fault_in_mid_search_does_not_tell_where_the_engine_is(client, script, stream):
    """The first stage is there, the rest is not: an answer, and nowhere in it what the server behind says of itself."""
    script |= {"fault": Fault(500, "secret at http://10.0.0.1/x"), "before": 1}
    search = {"strategy": "stage_beam", "candidates": 2, "return": "trace"}
    response = client.post("/v1/chat/completions", json=chat(search=search, stream=stream))
    assert response.status_code == 200 and "the engine gave no answer" in response.text
    assert "10.0.0.1" not in response.text and "127.0.0.1" not in response.text


def test_a_server_that_rests_makes_ours_not_ready(client, script, monkeypatch):
    """While nothing is asked of it for want of answers; alive it is all the same."""
    assert client.get("/ready").status_code == 200
    script["fault"] = Fault(500)
    for _ in range(4):
        assert client.post("/v1/chat/completions", json=chat()).status_code == 503
    assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
    later = time.monotonic() + 31
    monkeypatch.setattr("lora_cot.engines.retries.time.monotonic", lambda: later)
    assert client.get("/ready").status_code == 200


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_who_leaves_frees_the_place_at_once(client, script, end):
    """The server behind goes on with its answer, nobody here waits for it; nor when this server ends."""
    service = client.service
    script["fault"] = Fault(seconds=2)
    wanted = Wanted("four_stage", [Message(role="user", content="What?")], None, None, {}, None, 1, False, time.monotonic())

    async def leave():
        run = await service.begin(wanted, service.admission.enter())
        await asyncio.sleep(0.2)
        assert service.admission.requests == 1 and service.admission.tokens > 0
        begin = time.monotonic()
        run.cancel() if end == "cancel" else service.close()
        while service.admission.requests:
            await asyncio.sleep(0.01)
        return time.monotonic() - begin

    assert asyncio.run(leave()) < 0.5
    assert service.admission.tokens == 0 and service.is_ready, "our own end says nothing of the server behind"
