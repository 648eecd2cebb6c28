"""Asking a model server over HTTP: OpenAI's chat completions; bounded retries, and no key in any text.

Tried again, after a wait that doubles and is jittered, or that the server's `Retry-After` asks for: a connection that is
refused, dropped or too slow, statuses 408, 425, 429 and 5xx, and answers that are no chat completion (half a JSON, a
proxy's page). Any other status says that the same request would fail again: it is raised at once.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from pydantic import ValidationError

from lora_cot.engines.completions import Answer, ListedModel, read_answer, read_models
from lora_cot.engines.retries import Retries, Waits, pause, retry_after
from lora_cot.engines.transport import in_words, send
from lora_cot.errors import AccessError, EngineError, Problem, RejectedError

KEY_VARIABLE = "OPENAI_API_KEY"
"""Environment variable that the key is read from where no file is named."""
KEY_OPTION = "--engine-key-file"
"""Of the command line: the one that names the key's file of the server that runs the model."""
ENCODED = re.compile(r"data:[\w/.+-]+;base64,[A-Za-z0-9+/=]*|[A-Za-z0-9+/=]{80,}")
"""What an image looks like in a server's words about a request: it is not repeated."""
RUNNING = "see that the server runs and is not overloaded"
Read = TypeVar("Read")


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for."""

    timeout_seconds: float = 300.0
    """For a whole answer, each time it is asked."""
    tries: int = 5
    first_wait_seconds: float = 1.0
    """Before the second try; it doubles for each further one."""
    longest_wait_seconds: float = 60.0
    """A server that asks for a longer wait counts as one that does not answer."""

    def wait(self, tried: int, asked: float | None) -> float | None:
        """Seconds before the next try; None if it is not worth waiting for.

        Args:
            tried: how often it was asked.
            asked: what its `Retry-After` says.
        """
        if tried >= self.tries or (asked or 0) > self.longest_wait_seconds:
            return None
        own = min(self.first_wait_seconds * 2 ** (tried - 1), self.longest_wait_seconds)
        return max(asked or 0.0, own * random.uniform(0.5, 1.0))


@dataclass(frozen=True)
class _Fault:
    """Why there is no answer, where another try may bring one."""

    what: str
    asked: float | None = None
    """Seconds that the server asks to wait."""


class ChatServer:
    """An OpenAI-compatible server. One object serves any number of threads."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        patience: Patience | None = None,
        exact: bool = False,
        key_option: str | None = KEY_OPTION,
    ):
        """
        Args:
            url: its address, with or without `/v1`.
            key: sent with every request, and in no text that comes from here.
            patience: how long it is waited for.
            exact: it is asked at this very address, and not beneath `/v1`.
            key_option: names the key's file, for whoever meets a server that wants another; None: no key is ever sent.

        Raises:
            AccessError: the address is none.
        """
        beneath = base_url(url, key_option)
        self.url, self.patience, self._key = url.strip() if exact else beneath, patience or Patience(), key
        self._key_option, self._waits = key_option, Waits()
        limits = httpx2.Limits(max_connections=None)
        self._client = httpx2.Client(limits=limits, headers={"Authorization": f"Bearer {key}"} if key else {})

    def close(self) -> None:
        """Give up all that is asked, at once; nothing can be asked afterwards."""
        self._waits.give_up()
        self._client.close()

    def ask(self, body: Mapping[str, Any], until: float | None = None, retries: Retries | None = None) -> Answer:
        """The whole chat completion.

        Args:
            body: `model`, `messages` and whatever else the server takes: `max_tokens`, `n`, `stop`, `temperature`.
            until: on `time.monotonic`'s clock; it is waited for no longer.
            retries: of the search that asks; without, only `patience` bounds them.

        Raises:
            AccessError: the server wants another key, or knows no such address or model.
            RejectedError: it takes this request for wrong.
            EngineError: it gave no answer, however often it was asked.
        """
        return self.post("chat/completions", body, lambda data: read_answer(data, self._hide), until, retries)

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[bytes], Read],
        until: float | None = None,
        retries: Retries | None = None,
    ) -> Read:
        """What a JSON object is answered with.

        Args:
            path: beneath the server's address; empty for the address itself.
            body: the object.
            read: from the answer's body; one that it raises `pydantic.ValidationError` for is asked for again.
            until: see `ask`.
            retries: see `ask`.

        Raises:
            AccessError, RejectedError, EngineError: see `ask`.
        """
        return self._ask("POST", path, body, read, until, retries)

    def listed(self) -> list[ListedModel] | None:
        """The models that the server lists; None if it has no list.

        Raises:
            AccessError: the server wants another key.
            EngineError: it gave no answer.
        """
        try:
            return self._ask("GET", "models", None, read_models)
        except RejectedError as error:  # AccessError is one: a server without such a list answers 404
            if error.status in (401, 403):
                raise
            return None

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        read: Callable[[bytes], Read],
        until: float | None = None,
        retries: Retries | None = None,
    ) -> Read:
        tried, content, retries = 0, None if body is None else json.dumps(body).encode(), retries or Retries.unbounded()
        address = f"{self.url}/{path}" if path else self.url
        while True:
            tried, begin = tried + 1, time.monotonic()
            if retries.circuit.is_open:
                raise EngineError(Problem(self.url, f"{retries.circuit.most} requests in a row got no answer", RUNNING))
            seconds = min(self.patience.timeout_seconds, math.inf if until is None else max(until - begin, 0.001))
            got = self._try(method, address, content, read, seconds, retries.waits)
            if not isinstance(got, _Fault):
                retries.circuit.tell(True)
                if isinstance(got, EngineError):
                    raise got
                return got
            wait, now = self.patience.wait(tried, got.asked), time.monotonic()
            late = until is not None and now + (wait or 0) >= until
            spent = wait is not None and not retries.take(now - begin + wait)
            waits = self._waits, retries.waits
            if wait is None or late or spent or pause(wait, *waits):
                if not late and not any(one.are_over for one in waits):  # our own ends say nothing of the server
                    retries.circuit.tell(False)
                more = f", and asks to wait {got.asked:.0f} s" if got.asked else ""
                more += "; the search has no tries left" if spent else ""
                what = f"no answer after {tried} {'try' if tried == 1 else 'tries'}: {got.what}{more}"
                raise EngineError(Problem(self.url, what, RUNNING))

    def _try(
        self, method: str, address: str, content: bytes | None, read: Callable[[bytes], Read], seconds: float, waits: Waits
    ) -> Read | _Fault | EngineError:
        """What was read; a fault that may pass; or the error of one that will not."""
        try:
            status, headers, data = send(self._client, method, address, content, seconds, self._waits, waits)
            if 200 <= status < 300:
                return read(data)
        except ValidationError:
            return _Fault("its answer is no chat completion" if content else "its answer is no list of models")
        except httpx2.RequestError as error:
            return _Fault(in_words(error, seconds))
        fault = f"it answers {status}{self._told(data)}"
        if status not in (408, 425, 429) and status < 500:
            return self._refused(address, status, fault, headers.get("location", ""))
        return _Fault(fault, retry_after(headers.get("retry-after", "")))

    def _refused(self, address: str, status: int, fault: str, location: str) -> EngineError:
        if status in (401, 403):
            remedy = f"give a key that it takes: {self._key_option}, or the variable {KEY_VARIABLE}"
            remedy = remedy if self._key_option else "it is asked without a key: let it answer without one"
        elif status < 400:
            fault, remedy = f"{fault}: it is elsewhere", f"name that address: {self._hide(location)}"
        elif status in (404, 405):
            remedy = f"check the address ({address} was asked) and the model's name"
        else:
            return RejectedError(Problem(self.url, fault), status)
        return AccessError(Problem(self.url, fault, remedy), status)

    def _told(self, data: bytes) -> str:
        """The server's own words, short and in one line."""
        text = data[:4000].decode("utf-8", "replace")
        try:
            error = json.loads(data)["error"]
            text = error["message"] if isinstance(error, dict) else error
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        line = " ".join(ENCODED.sub("…", self._hide(str(text))).split())
        return f": {line[:200]}" if line else ""

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def base_url(url: str, key_option: str | None = KEY_OPTION) -> str:
    """The address that `/chat/completions` is put after.

    Args:
        url: with or without `/v1`.
        key_option: see `ChatServer`.

    Raises:
        AccessError: it is no address, or holds a key.
    """
    remedy = "expected http://HOST:PORT/v1"
    try:
        parsed = httpx2.URL(url.strip())
    except (httpx2.InvalidURL, TypeError):
        raise AccessError(Problem("the server's address", "it cannot be read", remedy)) from None
    if parsed.userinfo or parsed.query:
        what = "it holds a user, a password or a query"
        remedy += f", and the key in {key_option}" if key_option else ""
        raise AccessError(Problem("the server's address", what, remedy))
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise AccessError(Problem(url, "no address of a server", remedy))
    path = parsed.path.rstrip("/").removesuffix("/chat/completions")
    return str(parsed.copy_with(path=path or "/v1", fragment=None)).rstrip("/")


def read_key(path: Path | None) -> str | None:
    """The key in a file; that of the environment if no file is named; None if there is none.

    Raises:
        AccessError: the file cannot be read, or holds no single line.
    """
    if path is None:
        return os.environ.get(KEY_VARIABLE, "").strip() or None
    try:
        key = path.read_text("ascii").strip()
    except (OSError, UnicodeError):
        raise AccessError(Problem(str(path), "the file of the key cannot be read", "one line of ASCII")) from None
    if not key or len(key.split()) > 1:
        raise AccessError(Problem(str(path), "the file holds no key", "one line, the key alone"))
    return key
