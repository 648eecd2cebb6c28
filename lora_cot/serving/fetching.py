"""Images from addresses, where they are allowed, and then never from inside the network.

A host is resolved once: all of its addresses must be public, and the connection is made to the one that was checked.
Redirects and proxies are not followed; bytes and seconds are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from lora_cot.serving.errors import ApiError
from lora_cot.serving.images import wrong

ADDRESS = re.compile(r"https?://", re.IGNORECASE)
PUBLIC = ipaddress.ip_network("2000::/3")
"""What of IPv6 is given to hosts of the public network."""
EMBEDDED = tuple(ipaddress.ip_network(net) for net in ("2002::/16", "2001::/32"))
"""What of that holds an IPv4 address, which it may lead to."""
RELAY = ipaddress.ip_network("192.88.99.0/24")
"""IPv4 addresses of hosts that pass packets on to such."""


@dataclass(frozen=True)
class Fetching:
    """What images may be fetched from addresses."""

    hosts: frozenset[str] = frozenset()
    """Names that are allowed; `*` is any public one. None: data URIs only."""
    most_bytes: int = 20 * 2**20
    """Of one image, wherever it comes from."""
    seconds: float = 10.0
    """For all images of a request: waiting, looking up their hosts, and reading them."""
    requests: int = 16
    """Whose images are fetched at once."""


class Fetcher:
    """Fetches in threads of its own, so that slow hosts keep nobody waiting but those who name them."""

    def __init__(self, fetching: Fetching):
        self._fetching = fetching
        self._pool = ThreadPoolExecutor(fetching.requests, "fetch")

    async def fetched(self, urls: Sequence[str], hold: Callable[[int], None]) -> dict[str, bytes]:
        """The files of those images that are addresses.

        Args:
            urls: all images of a request.
            hold: told the bytes of each file; it may raise.

        Raises:
            DataError: one cannot be fetched, or not in time.
            ApiError: 503: other requests' images took all the time.
        """
        addresses = list(dict.fromkeys(filter(ADDRESS.match, urls))) if self._fetching.hosts else []
        if not addresses:
            return {}
        seconds = self._fetching.seconds
        job = self._pool.submit(self._fetch_all, addresses, time.monotonic() + seconds, hold)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), seconds)
        except TimeoutError:  # also while a name is looked up, which nothing can end
            if job.cancelled():
                raise ApiError(503, "too many images are being fetched", "queue_full", "messages", seconds) from None
            raise self._late() from None

    def close(self) -> None:
        """No more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _late(self) -> Exception:
        return wrong(f"fetching the images took longer than {self._fetching.seconds:g} s")

    def _fetch_all(self, urls: Sequence[str], deadline: float, hold: Callable[[int], None]) -> dict[str, bytes]:
        found = {}
        for url in urls:
            found[url] = self._fetch(url, deadline)
            hold(len(found[url]))
        return found

    def _fetch(self, url: str, deadline: float) -> bytes:
        most = self._fetching.most_bytes
        secure, host, port, path = _checked(url, self._fetching.hosts)
        address = _public_address(host, port)
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        connection = _Pinned(host, port, address, left, secure)
        timer = threading.Timer(left, connection.abort)  # a server that sends in drops has no more time
        timer.start()
        try:
            connection.request("GET", path, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
            response = connection.getresponse()
            data = response.read(most + 1)
        except (OSError, http.client.HTTPException, ValueError):
            raise self._late() if connection.aborted else wrong("the image could not be fetched") from None
        finally:
            timer.cancel()
            connection.close()
        if response.status != 200:
            raise wrong(f"its server answers {response.status}", "redirects are not followed")
        if connection.aborted:
            raise self._late()
        if len(data) > most:
            raise wrong(f"an image of more than {most:,} bytes", "send a smaller one", "image_size")
        return data


def _checked(url: str, hosts: frozenset[str]) -> tuple[bool, str, int, str]:
    """Whether TLS, host, port and path, if the address is one that may be asked."""
    # Parsers disagree on what a backslash, white space or a user name means: there is none.
    if re.search(r"[\x00-\x20\\\x7f-\U0010ffff]", url):
        raise wrong("the image's address cannot be read")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise wrong("the image's address cannot be read") from None
    secure = parts.scheme.lower() == "https"
    if not host or "@" in parts.netloc or port not in (None, 443 if secure else 80):
        raise wrong("the image's address has a user or a port", "expected https://HOST/PATH")
    if "*" not in hosts and host not in hosts:
        raise wrong("images of that host may not be fetched", "send a data URI")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return secure, host, 443 if secure else 80, path


def _public_address(host: str, port: int) -> str:
    """The first address of a host whose addresses are all public."""
    try:
        found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        raise wrong("the image's host is not known") from None
    if not found or not all(is_public(str(address)) for address in found):
        raise wrong("the image's host is not a public one", "send a data URI")
    return str(found[0])


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return is_public(str(ip.ipv4_mapped))
        if ip not in PUBLIC or any(ip in network for network in EMBEDDED):
            return False
    return ip.is_global and not ip.is_multicast and ip not in RELAY


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was checked, whatever the host's name means by now."""

    def __init__(self, host: str, port: int, address: str, seconds: float, secure: bool):
        super().__init__(host, port, timeout=seconds)
        self.default_port = port  # it is the scheme's, and not a part of the host's name
        self._address, self._secure = address, secure
        self._connected: socket.socket | None = None
        """Kept here too: the connection lets go of it before a response without a length is read."""
        self.aborted = False

    def connect(self) -> None:
        """TLS is shaken hands on only where `abort` can reach it."""
        self._take(socket.create_connection((self._address, self.port), self.timeout))
        if self._secure:
            context = ssl.create_default_context()
            wrapped = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self._take(wrapped)
            wrapped.do_handshake()

    def _take(self, connected: socket.socket) -> None:
        self._connected = self.sock = connected
        if self.aborted:
            raise TimeoutError

    def abort(self) -> None:
        """Time is over: whoever reads gets an end."""
        self.aborted = True
        if self._connected is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._connected, socket.SHUT_RDWR)  # TLS's own would pull the rug from under a reader
