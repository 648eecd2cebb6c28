"""A real process on a real socket: clients that leave or do not read, signals, full queues, and the official clients."""

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest

from lora_cot.engines.local import LocalEngine
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.serving.app import make_app
from lora_cot.serving.limits import Limits
from lora_cot.serving.local import served_local
from lora_cot.serving.scheduler import Scheduler
from lora_cot.serving.service import Service
from tests.openai_fake import FakeOpenAI
from tests.scripted_server import Fault, serve
from tests.serving.conftest import chat, data_uri

ROOT = Path(__file__).resolve().parents[2]
LONG = {"stages": {name: {"max_tokens": 450} for name in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")}}


@contextmanager
def process(base, *arguments):
    """A server and its address."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "lora_cot.cli", "serve", str(base), "--name", "tiny", "--port", "0", *arguments]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as running:
        for line in running.stderr:
            if found := re.search(r"^serving .* at (http://\S+)", line):
                break
        else:
            raise AssertionError("it did not start")
        running.address = found.group(1)
        try:
            yield running
        finally:
            running.kill()


@pytest.fixture(scope="module")
def server(local):
    """One in this process, on a real socket, with room for four rows."""
    import uvicorn

    scheduler, four = Scheduler(4), FORMATS["four_stage"]
    engine = LocalEngine(local.backbone, four)
    limits = Limits(max_tokens=12_000, max_request_tokens=12_000)
    service = Service([served_local("tiny", engine, four, SearchSection(), scheduler, 2048)], limits, scheduler)
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(make_app(service), log_config=None, access_log=False))
    thread = threading.Thread(target=lambda: running.run([listening]))
    thread.start()
    yield SimpleNamespace(address=f"http://127.0.0.1:{listening.getsockname()[1]}")
    running.should_exit = True
    thread.join(10)
    service.close()


def metric(server, name):
    text = httpx2.get(f"{server.address}/metrics").text
    return float(re.search(rf"^lora_cot_{name} (\S+)$", text, re.M).group(1))


def wait_for(what, seconds=10.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def post(server, timeout=60, **keys):
    return httpx2.post(f"{server.address}/v1/chat/completions", json=chat(model="tiny", **keys), timeout=timeout)


@contextmanager
def raw(server, **keys):
    """A client that can leave at any moment: a bare socket with a request sent."""
    host, port = server.address.removeprefix("http://").split(":")
    body = json.dumps(chat(model="tiny", search=LONG, **keys)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield client


@pytest.mark.parametrize("keys", [{}, {"stream": True, "include_reasoning": False}], ids=["whole", "stream"])
def test_a_client_that_leaves_frees_its_rows(server, keys):
    """At once, streaming or not, long before its answer would have ended."""
    before = metric(server, "cancelled_total")
    with raw(server, **keys):
        wait_for(lambda: metric(server, "rows") == 1)
    wait_for(lambda: metric(server, "rows") == 0, 1.0)
    wait_for(lambda: metric(server, "requests_in_progress") == 0, 1.0)
    assert metric(server, "cancelled_total") == before + 1 and metric(server, "tokens_admitted") == 0


def test_a_client_that_leaves_the_queue_is_never_begun(server):
    """Its place is free at once. On a busy machine the answer before it may be done too soon to see it: then once more."""
    for seconds in (3, 6, 12, 24):
        with contextlib.suppress(AssertionError), raw(server, n=4), raw(server):
            wait_for(lambda: metric(server, "rows") == 4 and metric(server, "queue_depth") >= 1, seconds)
            with raw(server):
                wait_for(lambda: metric(server, "requests_in_progress") == 3, seconds)
            wait_for(lambda: metric(server, "requests_in_progress") == 2, seconds)
            assert metric(server, "rows") == 4, "the first is still being answered: it was not its place that came free"
            break
    else:
        raise AssertionError("the one that left kept its place")
    wait_for(lambda: metric(server, "requests_in_progress") == 0 and metric(server, "rows") == 0)


def test_a_client_that_does_not_read_delays_nobody(server):
    """Others are answered while it sleeps."""
    with raw(server, stream=True, include_reasoning=False):
        wait_for(lambda: metric(server, "rows") == 1)
        begin = time.monotonic()
        assert post(server, max_tokens=5).status_code == 200
        assert time.monotonic() - begin < 3


@pytest.mark.slow
def test_a_full_queue_refuses_with_a_time_to_come_back(server):
    """Ten times what there is room for: each is answered or refused, none fails."""

    def ask(number):
        return post(server, temperature=1.0, search={**LONG, "max_tokens": 300}, n=1 + number % 2)

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        responses = list(pool.map(ask, range(40)))
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 503}
    for response in responses:
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) >= 1 and response.json()["error"]["code"] == "queue_full"
    assert post(server, max_tokens=3).status_code == 200 and metric(server, "tokens_admitted") == 0


def test_what_no_request_may_cost_is_refused_for_good(server):
    """With the numbers, and no time to come back."""
    response = post(server, search={**LONG, "strategy": "best_of_n", "candidates": 16}, n=2)
    assert response.status_code == 400 and response.json()["error"]["code"] == "search_budget_exceeded"


def test_the_official_client_chats_and_streams(server):
    """Both spellings of the reasoning are read as they are; the search goes through `extra_body`."""
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    search = {"strategy": "stage_beam", "candidates": 2, "stages": {"SUMMARY": {"max_tokens": 8}}}
    messages = chat(image=data_uri())["messages"]
    asked = {"model": "tiny", "messages": messages, "extra_body": {"search": search}, "seed": 1}
    whole = client.chat.completions.create(**asked)
    message = whole.choices[0].message
    assert message.content is not None and message.reasoning_content == message.reasoning is not None
    assert whole.usage.search["strategy"] == "stage_beam" and whole.usage.completion_tokens_details.reasoning_tokens >= 0
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == message.content and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny", messages=messages, n=99)
    assert error.value.param == "n"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=messages)


def test_langchain_chats_and_streams(server):
    """Unchanged, as with any other server."""
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(model="tiny", base_url=f"{server.address}/v1", api_key="none", max_tokens=12)
    assert model.invoke("What is it?").usage_metadata["output_tokens"] == 12
    assert "".join(chunk.content for chunk in model.stream("What is it?")) == model.invoke("What is it?").content


@pytest.mark.slow
def test_streams_are_told_when_their_time_is_up(tiny_base):
    """By their last event; the process ends with 0."""
    with process(tiny_base, "--drain-seconds", "0.5") as running:
        url = f"{running.address}/v1/chat/completions"
        body = chat(model="tiny", stream=True, include_reasoning=False, search=LONG)
        with httpx2.stream("POST", url, json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            running.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert running.wait(40) == 0
        last = json.loads(rest[-1].removeprefix("data: ")) if rest[-1] != "data: [DONE]" else {}
        assert rest[-1] == "data: [DONE]" or last["error"]["code"] == "engine_unavailable"
    with process(tiny_base, "--drain-seconds", "30") as running, raw(running, n=8, temperature=1.0):
        wait_for(lambda: metric(running, "rows") >= 1)
        running.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) in (143, 0)


@pytest.mark.slow
def test_a_server_behind_that_hangs_does_not_keep_the_process(tiny_base):
    """It ends with the drain, though what it asked was never answered."""
    hangs = threading.Event()
    with serve(lambda body, number: Fault(seconds=12) if hangs.is_set() else FakeOpenAI()(body, number)) as behind:
        behind.models = ["tiny"]
        arguments = ("--engine", behind.url, "--engine-model", "tiny", "--drain-seconds", "0.5")
        with process(tiny_base, *arguments) as running, concurrent.futures.ThreadPoolExecutor(1) as pool:
            hangs.set()
            asking = pool.submit(post, running)
            wait_for(lambda: metric(running, "requests_in_progress") == 1)
            begin = time.monotonic()
            running.send_signal(signal.SIGTERM)
            assert running.wait(10) == 0 and time.monotonic() - begin < 8
            assert asking.result(timeout=5).status_code == 503
