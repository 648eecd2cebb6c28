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
