"""What a hostile or broken other side may do to the server: images, readers, model servers. It costs them only."""

import asyncio
import base64
import binascii
import io
import resource
import struct
import threading
import time
import zlib

import pytest
from PIL import Image
from starlette.testclient import TestClient

from lora_cot.engines.chat import Patience
from lora_cot.engines.remote import RemoteEngine
from lora_cot.recipe.schema import SearchSection
from lora_cot.serving import settings
from lora_cot.serving.app import make_app
from lora_cot.serving.events import Text
from lora_cot.serving.limits import Limits
from lora_cot.serving.remote import served_remote
from lora_cot.serving.service import Service
from lora_cot.serving.streams import EventStream
from tests.openai_fake import FakeOpenAI
from tests.scripted_server import Fault
from tests.scripted_server import serve as serve_script
from tests.serving.conftest import FOUR_STAGE, chat, data_uri
from tests.serving.test_errors import INSIDE, error


def uri(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "PCX", "TGA", "SGI", "DIB", "JPEG2000"])
def test_other_formats_are_not_even_tried(serve, kind):
    """Whatever type they are given: decoders that few use are the ones with holes."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, kind)
    told = error(serve().post("/v1/chat/completions", json=chat(image=uri(buffer.getvalue()))), 400, "invalid_image")
    assert "PNG, JPEG, WEBP, GIF, BMP" in told["message"]


def bomb(side):
    """A PNG of a few kilobytes that claims side × side pixels, and has them."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", binascii.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_bomb_takes_no_memory(serve):
    """It is refused by its header: decoded, each would take 150 MB."""
    client = serve()
    client.post("/v1/chat/completions", json=chat(image=data_uri()))
    data = bomb(7000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        error(client.post("/v1/chat/completions", json=chat(image=uri(data))), 400, "image_too_large")
    assert len(data) < 20_000 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000


def test_images_are_counted_before_any_is_read(serve, monkeypatch):
    """Nor is one fetched."""
    client = serve(max_images=2)
    body = chat(image=data_uri())
    body["messages"][0]["content"] = body["messages"][0]["content"][:1] * 3
    monkeypatch.setattr(settings, "image_bytes", None)
    monkeypatch.setattr(type(client.service._fetcher), "fetched", None)
    assert "3 images, at most 2" in error(client.post("/v1/chat/completions", json=body), 400, "invalid_image")["message"]


def test_nothing_is_decoded_in_the_event_loop(serve, local, monkeypatch):
    """Nor is base64, nor JSON: whoever sends much of it would stop all streams."""
    client, seen = serve(), {}

    def noted(place, name):
        real = getattr(place, name)

        def spy(*arguments, **keys):
            seen[name] = threading.current_thread().name
            return real(*arguments, **keys)

        return spy

    from lora_cot.serving.schema import ChatRequest

    monkeypatch.setattr(settings, "image_bytes", noted(settings, "image_bytes"))
    monkeypatch.setattr(type(local.encoder), "look", noted(type(local.encoder), "look"))
    monkeypatch.setattr(ChatRequest, "model_validate_json", noted(ChatRequest, "model_validate_json"))
    assert client.post("/v1/chat/completions", json=chat(image=data_uri())).status_code == 200
    assert len(seen) == 3 and all(name.startswith(("prepare", "asyncio_")) for name in seen.values()), seen


class Talking:
    """A run that always has something to tell."""

    def __init__(self):
        self.told, self.cancelled = 0, 0

    async def next(self):
        self.told += 1
        await asyncio.sleep(0)
        return [Text("x" * 1000, None)]

    def cancel(self):
        self.cancelled += 1


@pytest.mark.parametrize("silent", [False, True], ids=["told", "pinged"])
def test_a_client_that_takes_nothing_is_given_up(silent):
    """After its time, with the work that was done for it; until then no more is made than one piece."""
    run, hangs = Talking(), asyncio.Event
    if silent:
        run.next = lambda: asyncio.sleep(60)

    async def send(message):
        if message["type"] == "http.response.body":
            await hangs().wait()

    async def receive():
        await hangs().wait()

    async def stream():
        made = EventStream(run, [], lambda event: event.text.encode(), b"", b"", None, 0.05, 0.2)
        begin = time.monotonic()
        await asyncio.wait_for(made({}, receive, send), 5)
        assert 0.15 < time.monotonic() - begin < 2

    asyncio.run(stream())
    assert run.cancelled == 1 and run.told <= 1


FAULTS = {
    "hangs": Fault(200, "{}", seconds=2.0),
    "500": Fault(500, "secret at http://10.0.0.1/x"),
    "429": Fault(429, "slow down", {"Retry-After": "0"}),
    "429 for an hour": Fault(429, "slow down", {"Retry-After": "3600"}),
    "drops": Fault(drop=True),
    "half an answer": Fault(200, '{"choices": [{"message": {"content": "<SUM'),
    "no JSON": Fault(200, "<html>secret at http://10.0.0.1/x"),
    "no choices": Fault(200, {"choices": []}),
    "nothing": Fault(200, {}),
    "another shape": Fault(200, [1, 2]),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_broken_model_server_is_told_and_survived(fault, stream):
    """A status of ours, in bounded time and with bounded tries; nothing of what it said; then all is as before."""
    fake, script = FakeOpenAI(), {"fault": None}
    with serve_script(lambda body, number: script["fault"] or fake(body, number)) as behind:
        behind.models = ["tiny"]
        patience = Patience(timeout_seconds=0.3, tries=2, first_wait_seconds=0.05)
        engine = RemoteEngine.open(behind.url, FOUR_STAGE, "tiny", patience=patience)
        service = Service([served_remote("four_stage", engine, FOUR_STAGE, SearchSection())], Limits())
        with TestClient(make_app(service), raise_server_exceptions=False) as client:
            script["fault"], before, begin = fault, len(behind.requests), time.monotonic()
            response = client.post("/v1/chat/completions", json=chat(stream=stream))
            assert time.monotonic() - begin < 2 and len(behind.requests) - before <= 2
            error(response, 503, "engine_unavailable")
            assert response.headers["retry-after"] and not INSIDE.search(response.text) and "secret" not in response.text
            script["fault"] = None
            assert client.post("/v1/chat/completions", json=chat(stream=stream)).status_code == 200
            assert service.admission.requests == 0
        service.close()
