"""One request over HTTP, with one end for all of it."""

from __future__ import annotations

import queue
import threading
import time

import httpx2

from lora_cot.engines.retries import Waits, waiting

CONNECT_SECONDS = 10.0
MOST_BYTES = 32 * 2**20
"""Of an answer; a server that sends more is not one that is asked here."""
Response = tuple[int, httpx2.Headers, bytes]
"""Status, headers, body."""


def send(client: httpx2.Client, method: str, url: str, content: bytes | None, seconds: float, *waits: Waits) -> Response:
    """What is answered within so many seconds: a server that sends its headers or its body in drops has no more.

    The client's own limits are for each read, and a drop in time satisfies them; so a thread reads, and is left alone at the
    end, or once it was given up. It ends with the headers (they are bounded), the body's time or the client.

    Raises:
        httpx2.RequestError: there is none.
    """
    with waiting(*waits) as done:

        def run() -> None:
            try:
                done.put(_exchange(client, method, url, content, seconds))
            except BaseException as error:
                done.put(error)

        if done.empty():  # else it is given up already
            threading.Thread(target=run, daemon=True).start()
        try:
            got = done.get(timeout=seconds + 0.05)  # or a connection that is too slow would be told as an answer that is
        except queue.Empty:
            raise httpx2.ReadTimeout("too slow") from None
    if got is None:
        raise httpx2.ReadError("given up")
    if isinstance(got, BaseException):
        raise got
    response: Response = got
    return response


def _exchange(client: httpx2.Client, method: str, url: str, content: bytes | None, seconds: float) -> Response:
    end = time.monotonic() + seconds
    headers = {"Content-Type": "application/json"} if content else {}
    timeout = httpx2.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds), pool=None)
    data = bytearray()
    with client.stream(method, url, content=content, headers=headers, timeout=timeout) as response:
        for piece in response.iter_bytes():
            data += piece
            if time.monotonic() > end:
                raise httpx2.ReadTimeout("too slow")
            if len(data) > MOST_BYTES:
                raise httpx2.ReadError("too long")
    return response.status_code, response.headers, bytes(data)


def in_words(error: httpx2.RequestError, timeout: float) -> str:
    """The error without what a library puts in its text."""
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return "it cannot be reached"
    if isinstance(error, httpx2.TimeoutException):
        return f"it took longer than {timeout:g} s"
    return "the connection broke off before the answer was whole"
