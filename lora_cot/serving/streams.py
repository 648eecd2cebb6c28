"""Sending events to a client that may be slow, or gone.

Starlette tells a handler nothing of a client that left; here its leaving is waited for beside the work itself, streaming or
not, and ends the work.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lora_cot.serving.events import Done, Event
from lora_cot.serving.service import Run

T = TypeVar("T")


class GoneError(Exception):
    """The client left before it had an answer."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work comes to.

    Raises:
        GoneError: the client left first; the work was cancelled.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GoneError
        return working.result()
    finally:
        for task in (working, leaving):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response of server-sent events; an ASGI application."""

    def __init__(
        self,
        run: Run,
        first: list[Event],
        encode: Callable[[Event], bytes],
        begin: bytes,
        end: bytes,
        failed: Callable[[BaseException], bytes],
        ping_seconds: float,
        send_seconds: float,
    ):
        """
        Args:
            run: whose events are sent.
            first: those that came before this response was begun: an error until then is a status of its own.
            encode: an event as bytes.
            begin: sent first.
            end: sent last.
            failed: an error as bytes.
            ping_seconds: of silence, after which a comment is sent.
            send_seconds: for the client to take what is sent.
        """
        super().__init__()
        self._run, self._first, self._encode, self._begin, self._end = run, first, encode, begin, end
        self._failed, self._ping_seconds, self._send_seconds = failed, ping_seconds, send_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all; a client that leaves, or does not take it, ends the work."""
        leaving = asyncio.ensure_future(_left(receive))
        getting: asyncio.Future[list[Event]] | None = None
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        headers += [(b"x-accel-buffering", b"no")]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send(send, self._begin + b"".join(map(self._encode, self._first)))
            is_over = any(isinstance(event, Done) for event in self._first)
            while not is_over:
                getting = getting or asyncio.ensure_future(self._run.next())
                waiting: list[asyncio.Future[Any]] = [getting, leaving]
                done, _ = await asyncio.wait(waiting, timeout=self._ping_seconds, return_when=asyncio.FIRST_COMPLETED)
                if leaving in done:
                    return
                if getting not in done:
                    await self._send(send, b": ping\n\n")
                    continue
                data, is_over = self._encoded(getting)
                getting = None
                await self._send(send, data)
            await self._send(send, self._end, more=False)
        except (OSError, TimeoutError):
            pass  # it left, or takes nothing: an answer that was not sent to its end tells the rest of the server
        finally:
            for task in (leaving, getting):
                if task is not None:
                    task.cancel()
            self._run.cancel()

    def _encoded(self, got: asyncio.Future[list[Event]]) -> tuple[bytes, bool]:
        """Events as bytes, and whether they are the last ones."""
        try:
            events = got.result()
        except Exception as error:
            return self._failed(error), True
        return b"".join(map(self._encode, events)), any(isinstance(event, Done) for event in events)

    async def _send(self, send: Send, data: bytes, more: bool = True) -> None:
        if data or not more:
            body = {"type": "http.response.body", "body": data, "more_body": more}
            await asyncio.wait_for(send(body), self._send_seconds)
