"""A client below HTTP: it sees what is read of its body, and sends it when a test says so."""

import asyncio
import json


class Exchange:
    """One request to an ASGI application, in a running event loop."""

    def __init__(self, app, path="/v1/chat/completions", headers=()):
        self._sent: asyncio.Queue = asyncio.Queue()
        self.reads, self.status, self.headers, self.data = 0, None, {}, b""
        headers = headers or [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"http_version": "1.1", "scheme": "http", "server": ("localhost", 80), "client": ("127.0.0.1", 1)}
        scope["headers"] = [(b"host", b"localhost"), *headers]
        self.done = asyncio.ensure_future(app(scope, self._receive, self._send))

    def body(self, data, more=False):
        """Send a piece of it."""
        self._sent.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def leave(self):
        self._sent.put_nowait({"type": "http.disconnect"})

    async def _receive(self):
        self.reads += 1
        return await self._sent.get()

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.data += message.get("body", b"")

    @property
    def error(self):
        return json.loads(self.data)["error"]
