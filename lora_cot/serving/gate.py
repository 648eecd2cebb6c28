"""What every request passes: an id, the key, the host, a count, and a line in the log that holds nothing a user wrote.

Plain ASGI, since a wrapped stream would hide a client's leaving. The path is the one that was sent (`scope["path"]`); no
header has a say in whether the key is asked for.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Callable, Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_cot.serving.errors import ApiError, of_failure, place_of

log = logging.getLogger("lora_cot.serving")
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class Gate:
    """An ASGI application before another."""

    def __init__(
        self,
        app: ASGIApp,
        key: str | None = None,
        hosts: Collection[str] | None = None,
        public: Collection[str] = ("/health",),
        count: Callable[[int], Any] = lambda _status: None,
    ):
        """
        Args:
            app: behind the gate.
            key: asked for as `Authorization: Bearer KEY`; None: none is.
            hosts: names that a request may call this server by; None: any. Without a key it keeps pages of other sites
                from reaching a server on the visitor's own machine by a name that leads there.
            public: paths that need no key.
            count: told the status of each answer.
        """
        self._app, self._hosts, self._public, self._count = app, hosts, frozenset(public), count
        self._key = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, begin, status = uuid.uuid4().hex[:24], time.monotonic(), 499
        scope["request_id"] = request_id

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, sending)
        except Exception as error:
            if not isinstance(error, ApiError):
                log.error("request %s failed: %s", request_id, place_of(error))
            if status == 499:
                await answer_error(of_failure(error, request_id), sending)
        finally:
            self._count(status)
            milliseconds = (time.monotonic() - begin) * 1000
            log.info("%s %s %d %.0f ms", request_id, scope["method"], status, milliseconds)

    def _check(self, scope: Scope) -> None:
        """See that a request may pass.

        Raises:
            ApiError: it may not.
        """
        headers = dict(reversed(scope["headers"]))
        if self._hosts is not None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
            if name not in self._hosts:
                raise ApiError(403, "this server answers to its local names only", "wrong_host")
        if self._key is None or scope["path"] in self._public:
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(_digest(given), self._key):
            raise ApiError(401, "no valid key: send Authorization: Bearer KEY", "invalid_api_key")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


async def answer_error(error: ApiError, send: Send) -> None:
    """Send an error as a whole answer."""
    body = json.dumps(error.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    coded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": coded})
    await send({"type": "http.response.body", "body": body})
