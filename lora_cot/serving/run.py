"""`serve`: models, and a server of them as a process: its address, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType

import uvicorn

from lora_cot.checkpoints.opening import Quantization
from lora_cot.engines.opening import AnyOpened, OpenedRemote, Server, check_unloaded, open_any
from lora_cot.errors import Problem, RunError
from lora_cot.serving.app import make_app
from lora_cot.serving.errors import place_of
from lora_cot.serving.gate import LOCAL_HOSTS, log
from lora_cot.serving.limits import Limits
from lora_cot.serving.opening import open_models, open_served
from lora_cot.serving.scheduler import Scheduler
from lora_cot.serving.service import Service

GRACE_SECONDS = 5.0
"""After the drain's end, for streams to tell their clients; and again for what was told to be taken."""
KEEP_ALIVE_SECONDS = 30
ROWS = 64
"""Candidates that decode at once, if nothing is said of them."""


class _Server(uvicorn.Server):
    """The first SIGTERM or Ctrl-C lets requests end, for a bounded time; the second ends the process.

    Until the last request has ended it listens on, so that `/ready` can say 503 and new requests are told to come back.
    """

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service
        self._drained_at: float | None = None
        """When those that still run are ended; None: no signal came."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drained_at is not None:
            os._exit(128 + sig)
        print("draining: no new requests; a second signal ends at once", file=sys.stderr, flush=True)
        self._service.admission.is_open = False
        self._drained_at = time.monotonic() + self._service.limits.drain_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """What a task or a thread leaves unsaid goes to the log as any other fault does: without a user's words."""
        asyncio.get_running_loop().set_exception_handler(lambda _loop, told: _log_fault(told.get("exception")))
        threading.excepthook = lambda told: _log_fault(told.exc_value)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        if self._drained_at is not None:
            late = time.monotonic() - self._drained_at
            if late > 0:
                self._service.expire()
            self.should_exit = not self._service.admission.requests or late > GRACE_SECONDS
        return await super().on_tick(counter)


def _log_fault(error: BaseException | None) -> None:
    log.error("a fault outside of any request: %s", "unknown" if error is None else place_of(error))


def serve(
    model: str | AnyOpened,
    name: str | None = None,
    adapters: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    quantization: Quantization = "auto",
    server: Server | None = None,
    rows: int | None = None,
    kv_gib: float | None = None,
    context: int | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve a model as OpenAI's API does, with searches inside, until a signal ends it.

    Args:
        model: run, adapter, merged folder or hub id; or what `open_model` or `open_remote` gave.
        name: that requests call it by; its run's name, or that of its folder, if not given.
        adapters: further runs or adapters of the same base, by name.
        host: name or address to listen at. Without a key, a server on the loopback address answers to local names only.
        port: 0 takes any that is free.
        key: that clients must send.
        quantization: how the base of a model that is named is loaded.
        server: what runs it, if not this process.
        rows: candidates that decode at once, of all requests; `ROWS` if not given.
        kv_gib: GiB that keys and values may take; see `room_of`.
        context: tokens of a prompt and its answer; the model's own if not given.
        limits: of requests.

    Raises:
        LoraCotError: see `open_any`, `open_models`, `open_served`.
        RunError: the address cannot be listened at; something is said of how this process runs what a server does.
    """
    if server or isinstance(model, OpenedRemote):
        how = None if quantization == "auto" else quantization
        local = {"--adapter": adapters or None, "--kv-gib": kv_gib, "--context": context, "--rows": rows}
        check_unloaded({"--quantization": how, **local})
    opened = open_any(model, quantization, server)
    if isinstance(opened, OpenedRemote):
        service = Service([open_served(opened, name)], limits or Limits(), None)
    else:
        scheduler = Scheduler(rows or ROWS)
        models = open_models(opened, name, adapters or {}, context, scheduler, kv_gib)
        service = Service(models, limits or Limits(), scheduler)
    run(service, host, port, key)


def run(service: Service, host: str, port: int, key: str | None) -> None:
    """Listen until a signal ends it.

    Args:
        service: the models.
        host: see `serve`, for the others too.
        port: where to listen.
        key: that clients must send.

    Raises:
        RunError: the address cannot be listened at.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("lora_cot.serving").setLevel(logging.INFO)
    sys.setswitchinterval(0.0005)  # the thread that runs the model waits so long at most for one that reads a request
    listening = _listen(host, port)
    is_local = listening.getsockname()[0] in ("127.0.0.1", "::1")
    app = make_app(service, key, LOCAL_HOSTS if is_local and key is None else None)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(GRACE_SECONDS),
    )
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {', '.join(service.models)} at http://{shown}:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
    if not is_local and key is None:
        print("anybody who reaches this address may ask: give --api-key-file", file=sys.stderr, flush=True)
    try:
        asyncio.run(_Server(config, service).serve([listening]))
    finally:
        service.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=2048)
        # Connections have it from here; without, each answer waits 40 ms for the client's word on the one before.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        what = f"cannot listen at {host}:{port}: {error.strerror}"
        raise RunError(Problem("--host, --port", what, "choose another port; 0 takes any that is free")) from None
