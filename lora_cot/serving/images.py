"""Images of a request: data URIs; addresses only where they are allowed, and then never one inside the network.

A host is resolved once: all of its addresses must be public, and the connection is made to the one that was checked.
Redirects and proxies are not followed, bytes and seconds are bounded. Nothing here opens a file.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

from lora_cot.errors import DataError, Problem

DATA_URI = re.compile(r"data:image/(png|jpeg|jpg|webp|gif|bmp);base64,", re.IGNORECASE)
EMBEDDED = tuple(ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))
"""IPv6 addresses that hold an IPv4 address, which they may lead to."""


@dataclass(frozen=True)
class Fetching:
    """What images may be fetched from addresses."""

    hosts: frozenset[str] = frozenset()
    """Names that are allowed; `*` is any public one. None: data URIs only."""
    most_bytes: int = 20 * 2**20
    """Of one image."""
    seconds: float = 10.0
    """For one image, all in all."""


def image_bytes(url: str, fetching: Fetching) -> bytes:
    """The file of an image that a request names; it is not decoded here.

    Raises:
        DataError: it is no data URI, or no address that may be fetched.
    """
    if match := DATA_URI.match(url):
        try:
            data = base64.b64decode(url[match.end() :].encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise _wrong("the data URI is not base64", "no white space, no line breaks") from None
        if not data:
            raise _wrong("the data URI is empty")
        if len(data) > fetching.most_bytes:
            raise _wrong(f"an image of {len(data):,} bytes", f"at most {fetching.most_bytes:,}", "image_size")
        return data
    if fetching.hosts and re.match(r"https?://", url, re.IGNORECASE):
        return _fetch(url, fetching)
    allowed = "data:image/png;base64,… with png, jpeg, webp, gif or bmp"
    raise _wrong("not an image's data URI", f"allowed: {allowed}; this server fetches no address")


def _wrong(what: str, remedy: str = "", kind: str = "image_unreadable") -> DataError:
    return DataError(Problem("", what, remedy, kind))


def _fetch(url: str, fetching: Fetching) -> bytes:
    secure, host, port, path = _checked(url, fetching)
    address = _public_address(host, port)
    connection = _Pinned(host, port, address, fetching.seconds, secure)
    timer = threading.Timer(fetching.seconds, connection.abort)  # a server that sends in drops has no more time
    timer.start()
    try:
        connection.request("GET", path, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
        response = connection.getresponse()
        data = response.read(fetching.most_bytes + 1)
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        raise _wrong("the image could not be fetched") from None
    finally:
        timer.cancel()
        connection.close()
    if response.status != 200:
        raise _wrong(f"its server answers {response.status}", "redirects are not followed")
    if connection.aborted:
        raise _wrong(f"fetching the image took longer than {fetching.seconds:g} s")
    if len(data) > fetching.most_bytes:
        raise _wrong(f"an image of more than {fetching.most_bytes:,} bytes", "send a smaller one", "image_size")
    return data


def _checked(url: str, fetching: Fetching) -> tuple[bool, str, int, str]:
    """Whether TLS, host, port and path, if the address is one that may be asked."""
    # Parsers disagree on what a backslash, white space or a user name means: there is none.
    if re.search(r"[\x00-\x20\\\x7f-\U0010ffff]", url):
        raise _wrong("the image's address cannot be read")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise _wrong("the image's address cannot be read") from None
    secure = parts.scheme.lower() == "https"
    if not host or "@" in parts.netloc or port not in (None, 443 if secure else 80):
        raise _wrong("the image's address has a user or a port", "expected https://HOST/PATH")
    if "*" not in fetching.hosts and host not in fetching.hosts:
        raise _wrong("images of that host may not be fetched", "send a data URI")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return secure, host, 443 if secure else 80, path


def _public_address(host: str, port: int) -> str:
    """The first address of a host whose addresses are all public."""
    try:
        found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        raise _wrong("the image's host is not known") from None
    if not found or not all(is_public(str(address)) for address in found):
        raise _wrong("the image's host is not a public one", "send a data URI")
    return str(found[0])


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in EMBEDDED):
            return False
    return ip.is_global and not ip.is_multicast


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was checked, whatever the host's name means by now."""

    def __init__(self, host: str, port: int, address: str, seconds: float, secure: bool):
        super().__init__(host, port, timeout=seconds)
        self._address, self._secure = address, secure
        self._connected: socket.socket | None = None
        """Kept here too: the connection lets go of it before a response without a length is read."""
        self.aborted = False

    def connect(self) -> None:
        self._connected = self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            context = ssl.create_default_context()
            self._connected = self.sock = context.wrap_socket(self.sock, server_hostname=self.host)

    def abort(self) -> None:
        """Time is over: whoever reads gets an end."""
        self.aborted = True
        if self._connected is not None:
            with contextlib.suppress(OSError):
                self._connected.shutdown(socket.SHUT_RDWR)
