"""The end of a server: it listens until the last request has its answer, and tells all others to come back."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time

import httpx2
import pytest
import uvicorn

from lora_cot.engines.local import LocalEngine
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.serving import run
from lora_cot.serving.app import make_app
from lora_cot.serving.limits import Limits
from lora_cot.serving.local import served_local
from lora_cot.serving.scheduler import Scheduler
from lora_cot.serving.service import Service
from tests.serving.conftest import chat
from tests.serving.test_process import LONG, metric, process, raw, wait_for


@pytest.fixture
def serve(local):
    """Makes a server as the command does, in a thread; it ends by `handle_exit`, since signals belong to the main thread."""
    made = []

    def make(**limits):
        scheduler, four = Scheduler(4), FORMATS["four_stage"]
        limits = Limits(max_tokens=20_000, max_request_tokens=20_000, **limits)
        model = served_local("tiny", LocalEngine(local.backbone, four), four, SearchSection(), scheduler, 2048)
        service = Service([model], limits, scheduler)
        server = run._Server(uvicorn.Config(make_app(service), log_config=None, access_log=False), service)
        server.capture_signals = contextlib.nullcontext
        listening = socket.create_server(("127.0.0.1", 0))
        server.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        server.thread.start()
        made.append((server, service))
        return server

    yield make
    for server, service in made:
        server.should_exit = True
        server.thread.join()
        service.close()


def while_draining(address):
    """What others are told meanwhile, each over a connection of its own."""
    health, ready = httpx2.get(f"{address}/health"), httpx2.get(f"{address}/ready")
    refused = httpx2.post(f"{address}/v1/chat/completions", json=chat(model="tiny"))
    assert (health.status_code, ready.status_code, refused.status_code) == (200, 503, 503)
    assert int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["code"] == "engine_unavailable"


def test_it_listens_until_it_is_drained(serve):
    """Alive, not ready; who was there before the signal gets the whole answer."""
    server = serve(drain_seconds=30)
    with raw(server, stream=True, include_reasoning=False, max_tokens=600) as client:
        wait_for(lambda: metric(server, "rows") == 1)
        server.handle_exit(signal.SIGTERM, None)
        time.sleep(0.3)
        while_draining(server.address)
        told = b"".join(iter(lambda: client.recv(65536), b""))
    assert b"data: [DONE]" in told and b'"error"' not in told
    server.thread.join(10)
    assert not server.thread.is_alive()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.address}/health")


def test_who_takes_too_long_is_told(serve, monkeypatch):
    """By the last event of its stream; a body that never comes does not keep the server."""
    server = serve(drain_seconds=0.2)
    host, port = server.address.removeprefix("http://").split(":")
    with raw(server, stream=True, include_reasoning=False) as client, socket.create_connection((host, int(port))) as idle:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        idle.sendall(f"{head}Content-Length: 100\r\n\r\n".encode())
        wait_for(lambda: metric(server, "rows") == 1 and metric(server, "requests_in_progress") == 2)
        monkeypatch.setattr(run, "GRACE_SECONDS", 0.4)
        server.config.timeout_graceful_shutdown = 1
        server.handle_exit(signal.SIGTERM, None)
        told = b"".join(iter(lambda: client.recv(65536), b""))
        server.thread.join(10)
    *_, last, done = [line for line in told.split(b"\n") if line.startswith(b"data: ")]
    assert json.loads(last[6:])["error"]["code"] == "engine_unavailable" and done == b"data: [DONE]"
    assert not server.thread.is_alive()


def test_without_requests_it_ends_at_once(serve):
    server = serve(drain_seconds=30)
    wait_for(lambda: server.started)
    server.handle_exit(signal.SIGTERM, None)
    server.thread.join(3)
    assert not server.thread.is_alive()


def test_a_second_signal_ends_the_process(serve, monkeypatch):
    """At once, whatever runs."""
    server, ended = serve(drain_seconds=30), []
    monkeypatch.setattr(os, "_exit", ended.append)
    with raw(server):
        wait_for(lambda: metric(server, "rows") == 1)
        server.handle_exit(signal.SIGTERM, None)
        assert ended == []
        server.handle_exit(signal.SIGTERM, None)
        assert ended == [143]


@pytest.mark.slow
def test_a_real_process_drains(tiny_base):
    """By real signals, to the exit status."""
    with process(tiny_base, "--drain-seconds", "60") as running:
        body = chat(model="tiny", stream=True, include_reasoning=False, search=LONG)
        with httpx2.stream("POST", f"{running.address}/v1/chat/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            running.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            while_draining(running.address)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert running.wait(10) == 0
    with process(tiny_base, "--drain-seconds", "60") as running, raw(running, n=8, temperature=1.0):
        wait_for(lambda: metric(running, "rows") >= 1)
        running.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        running.send_signal(signal.SIGTERM)
        assert running.wait(3) == 143


def test_answers_do_not_wait_for_the_clients_word():
    """A connection sends at once what it has (no Nagle): 40 ms for each piece of a stream would be most of its time."""
    with run._listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
