"""A place is taken before a body is read, and what is held for all requests together has a bound."""

import asyncio
import json
import threading

import pytest

from lora_cot.serving.errors import ApiError
from lora_cot.serving.limits import Admission, Limits
from tests.serving.asgi import Exchange
from tests.serving.conftest import chat, data_uri
from tests.serving.test_errors import error

QUESTION = json.dumps(chat(max_tokens=3)).encode()


async def ticks(until, count=500):
    for _ in range(count):
        if until():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come")


def test_a_full_house_reads_no_body(serve):
    """503 with a time to come back, before anything was asked of the client."""
    client = serve(max_requests=1)

    async def check():
        client.service.admission.enter()
        one = Exchange(client.app)
        await one.done
        assert (one.reads, one.status, one.error["code"]) == (0, 503, "queue_full") and int(one.headers["retry-after"]) >= 1

    asyncio.run(check())


def test_bodies_have_one_bound_together(serve):
    """Counted as they come, since a length need not be told: what is over it is refused, and those before it go on."""
    client = serve(max_held_bytes=50_000)

    async def check():
        first, second = Exchange(client.app), Exchange(client.app)
        first.body(b" " * 30_000, more=True)
        await ticks(lambda: client.service.admission.bytes == 30_000)
        second.body(b" " * 30_000, more=True)
        await second.done
        assert (second.status, second.error["code"]) == (503, "queue_full") and int(second.headers["retry-after"]) >= 1
        assert client.service.admission.bytes == 30_000
        first.body(QUESTION)
        await first.done
        assert first.status == 200
        await ticks(lambda: client.service.admission.bytes == client.service.admission.requests == 0)

    asyncio.run(check())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("how", ["leaves", "slow", "large", "other type", "no json", "wrong", "no model"])
def test_whoever_gets_no_answer_leaves_nothing_behind(serve, path, how):
    """No place, no bytes; a client that leaves in the middle of its body is no fault of the server."""
    client = serve(max_body_bytes=1000, body_seconds=0.1 if how == "slow" else 60)

    async def check():
        unknown = {"model": "x", "input": "x"} if path == "/v1/responses" else chat(model="x")
        one = Exchange(client.app, path, [(b"content-type", b"text/plain")] if how == "other type" else [])
        one.body(b" " * 100, more=True)
        if how == "leaves":
            await ticks(lambda: client.service.admission.bytes == 100)
            one.leave()
        elif how != "slow":
            said = {"large": b" " * 1000, "no json": b"{", "wrong": b"{}"}
            one.body(said.get(how, json.dumps(unknown).encode()))
        await one.done
        expected = {"leaves": 499, "slow": 408, "large": 413, "other type": 415, "no model": 404}
        assert one.status == expected.get(how, 400)
        assert (client.service.admission.requests, client.service.admission.bytes) == (0, 0)

    asyncio.run(check())


def test_room_is_counted_once():
    """Leaving twice gives back once; after it, nothing is held any more; what is refused is not counted."""
    admission = Admission(Limits(max_tokens=100, max_request_tokens=80, max_held_bytes=10, max_requests=2), lambda: 10.0)
    first, second = admission.enter(), admission.enter()
    first.take(80), first.hold(6)
    with pytest.raises(ApiError) as full:
        second.take(21)
    assert (full.value.status, full.value.retry_after) == (503, 4.0), "half of what there is to do, at ten tokens a second"
    for over in (lambda: second.hold(5), admission.enter):
        with pytest.raises(ApiError, match="full"):
            over()
    second.take(20), second.hold(4)
    for place in (first, first, second):
        place.leave()
        place.hold(3)
    assert (admission.requests, admission.tokens, admission.bytes) == (0, 0, 0)
    with pytest.raises(ApiError) as never:
        admission.enter().take(81)
    assert never.value.status == 400


def test_an_image_that_is_decoded_keeps_nobody_waiting(serve, local, monkeypatch):
    """Only the tokenizer is one for all."""
    client, look = serve(), type(local.encoder).look
    begun, go_on = threading.Event(), threading.Event()

    def slow(self, image, *arguments):
        found = look(self, image, *arguments)
        if found.size == (50, 50):
            begun.set()
            assert go_on.wait(20)
        return found

    monkeypatch.setattr(type(local.encoder), "look", slow)
    statuses = []
    waiting = threading.Thread(
        target=lambda: statuses.append(client.post("/v1/chat/completions", json=chat(image=data_uri((50, 50)))).status_code)
    )
    waiting.start()
    assert begun.wait(20)
    assert client.post("/v1/chat/completions", json=chat(image=data_uri())).status_code == 200 and not statuses
    go_on.set()
    waiting.join()
    assert statuses == [200]


def test_images_of_a_request_have_a_bound_of_pixels_together(serve, local, monkeypatch):
    """Each alone is small enough; they are measured by their headers, and none is decoded."""
    client = serve(max_image_pixels=1000)
    two = chat(image=data_uri((20, 30)))
    two["messages"][0]["content"].insert(0, {"type": "image_url", "image_url": {"url": data_uri((30, 14))}})
    assert client.post("/v1/chat/completions", json=chat(image=data_uri((40, 25)))).status_code == 200
    monkeypatch.setattr(type(local.encoder), "look", None)
    told = error(client.post("/v1/chat/completions", json=two), 400, "image_too_large")
    assert "1,020" in told["message"] and "1,000" in told["message"]
