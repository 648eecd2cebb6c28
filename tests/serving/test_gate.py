"""The key is asked for on every route but one, however a path or header is spelled; nothing is cached across requests."""

import logging

import pytest

from tests.serving.conftest import chat, data_uri

KEY = "sk-abcdefgh"


@pytest.fixture
def page(tmp_path):
    """A page of two files."""
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "app.js").write_text("1")
    return tmp_path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"), ("GET", "/v1/models/four_stage"), ("POST", "/v1/chat/completions"), ("GET", "/ready"),
        ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "//v1/models"), ("GET", "/V1/models"), ("GET", "/v1/models/"),
        ("OPTIONS", "/v1/chat/completions"), ("HEAD", "/v1/models"), ("GET", "/health/"), ("GET", "/health/../metrics"),
        ("GET", "/health%2f..%2fmetrics"), ("GET", "/HEALTH"), ("GET", "/nothing"), ("GET", "/app.js/../metrics"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("headers", [{}, {"Host": "a/?x="}, {"Host": "/health?"}, {"X-Original-URL": "/health"}], ids=str)
def test_no_route_but_health_answers_without_the_key(serve, page, method, path, headers):
    """Whatever the host header says."""
    client = serve(key=KEY, page=page)
    response = client.request(method, path, headers=headers)
    assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert method == "HEAD" or response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer ü"]
)
def test_a_wrong_key_is_none(serve, given):
    """Only the very key is taken."""
    headers = {"Authorization": given.encode("latin-1")}
    assert serve(key=KEY).get("/v1/models", headers=headers).status_code == 401


def test_the_key_opens_and_health_needs_none(serve, page):
    """The page's own files need none either: they hold nothing, and a browser cannot send one with an address."""
    client = serve(key=KEY, page=page)
    assert client.get("/health").status_code == 200
    assert client.get("/v1/models", headers={"Authorization": f"bearer {KEY}"}).status_code == 200
    for path in ("/", "/app.js"):
        response = client.get(path)
        assert response.status_code == 200 and "default-src 'none'" in response.headers["content-security-policy"]
    assert client.get("/index.html").status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ],
)
def test_a_local_server_answers_to_local_names_only(serve, host, status):
    """A page elsewhere cannot reach it by a name of its own that leads here."""
    client = serve(hosts=("localhost", "127.0.0.1", "[::1]"))
    assert client.get("/v1/models", headers={"Host": host}).status_code == status


def test_logs_and_metrics_hold_nothing_that_a_user_wrote(serve, caplog):
    """An id, a status, a time; the id is in the answer's header too."""
    caplog.set_level(logging.DEBUG)
    client = serve(key=KEY)
    question = "my-secret-question"
    headers = {"Authorization": f"Bearer {KEY}"}
    response = client.post("/v1/chat/completions", json=chat(question, data_uri(), user=question), headers=headers)
    client.post("/v1/chat/completions", json=chat(question, "file:///my-secret-question"), headers=headers)
    client.get(f"/{question}?{question}", headers=headers)
    logged = "".join(record.getMessage() for record in caplog.records if record.name.startswith("lora_cot"))
    text = logged + client.get("/metrics", headers=headers).text
    assert response.headers["x-request-id"] in logged
    assert question not in text and KEY not in text and "base64" not in text


def test_metrics_count(serve):
    """Requests by status, tokens by kind, stages by name."""
    client = serve()
    client.post("/v1/chat/completions", json=chat(search={"strategy": "stage_beam", "candidates": 3, "scorer": "pairwise"}))
    client.post("/v1/chat/completions", json=chat(n=0))
    text = client.get("/metrics").text
    for line in (
        'requests_total{code="200"} 1.0',
        'requests_total{code="400"} 1.0',
        'tokens_total{kind="kept"} 6.0',
        'tokens_total{kind="discarded"} 12.0',
        'stage_seconds_count{stage="SUMMARY"} 1.0',
        "queue_depth 0.0",
        "time_to_first_token_seconds_count 1.0",
        "requests_in_progress 0.0",
    ):
        assert f"lora_cot_{line}" in text, line


def test_no_request_sees_anothers_image(serve):
    """Pictures of the same bytes in another shape, asked for at once and in turn, are answered as alone."""
    from concurrent.futures import ThreadPoolExecutor

    shapes = [(100, 30), (30, 100), (60, 60), (100, 30)]
    alone = [serve().post("/v1/chat/completions", json=chat(image=data_uri(shape))).json()["choices"] for shape in shapes]
    client = serve()
    with ThreadPoolExecutor(4) as pool:
        bodies = [chat(image=data_uri(shape)) for shape in shapes * 3]
        found = list(pool.map(lambda body: client.post("/v1/chat/completions", json=body).json()["choices"], bodies))
    assert found == alone * 3


def test_a_seed_gives_the_same_answer_whoever_asks_beside(serve):
    """Without a seed, draws differ."""
    from concurrent.futures import ThreadPoolExecutor

    client = serve()
    body = chat(image=data_uri(), seed=11, temperature=1.0)
    alone = client.post("/v1/chat/completions", json=body).json()["choices"]
    with ThreadPoolExecutor(6) as pool:
        bodies = [body, chat("Another?", temperature=1.0)] * 4
        found = list(pool.map(lambda one: client.post("/v1/chat/completions", json=one).json()["choices"], bodies))
    assert found[::2] == [alone] * 4
    assert len({str(choices) for choices in found[1::2]}) == 4


SECRET = "my-secret-question"


def fails(*_, **__):
    """As code does that says in its error what it was given."""
    try:
        raise ValueError(SECRET)
    except ValueError:
        raise RuntimeError(f"cannot read {SECRET}") from KeyError(SECRET)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("where", ["preparing", "engine", "answer", "body"])
def test_a_fault_is_logged_by_its_place_and_not_by_its_words(serve, caplog, monkeypatch, where, stream):
    """Errors quote prompts: the log has the id, the types and the lines, whatever fails and however far an answer had come."""
    from lora_cot.engines.batch import Batch
    from lora_cot.serving import answers, routes
    from lora_cot.serving.service import Service

    client, step, steps = serve(), Batch.step, []

    def late(self):
        steps.append(1)
        return fails() if len(steps) > 8 else step(self)

    place, name, fault = {
        "preparing": (Service, "_prepare", fails), "engine": (Batch, "step", late), "body": (routes, "read_body", fails),
        "answer": (answers.ChatChunks, "whole", fails),
    }[where]  # fmt: skip
    monkeypatch.setattr(place, name, fault)
    if where == "answer":
        monkeypatch.setattr(place, "_end", fails)
    body = chat(SECRET, stream=stream, include_reasoning=False, user=SECRET)
    response = client.post("/v1/chat/completions", json=body)
    assert SECRET not in caplog.text and SECRET not in response.text
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert response.headers["x-request-id"] in told and f"{__file__}:" in told
    assert "RuntimeError at " in told and "; after KeyError at " in told


def test_what_nobody_is_left_to_hear_is_not_logged(caplog):
    """A client that leaves just as its answer fails: asyncio would log the error's text."""
    import asyncio
    import gc

    from lora_cot.serving.streams import EventStream

    class Run:
        async def next(self):
            raise RuntimeError(SECRET)

        def cancel(self):
            pass

    async def leave():
        async def receive():
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        await EventStream(Run(), [], None, b"", b"", None, 1, 1)({}, receive, send)
        await asyncio.sleep(0)
        gc.collect()

    asyncio.run(leave())
    assert SECRET not in caplog.text


def test_faults_of_threads_and_tasks_are_logged_by_their_place(caplog, monkeypatch):
    """While the server runs."""
    import asyncio
    import gc
    import threading

    import uvicorn

    from lora_cot.serving.run import _Server

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(uvicorn.Server, "startup", lambda self, sockets: asyncio.sleep(0))

    async def run():
        await _Server(uvicorn.Config(None), None).startup([])
        asyncio.ensure_future(asyncio.sleep(0)).add_done_callback(fails)
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join()
        await asyncio.sleep(0.01)
        gc.collect()

    asyncio.run(run())
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 2 and all("RuntimeError at" in one and f"{__file__}:" in one for one in told)
    assert SECRET not in caplog.text
