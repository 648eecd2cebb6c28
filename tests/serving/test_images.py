"""Images from addresses: off unless a host is allowed, and never a way into the network."""

import base64
import contextlib
import http.server
import io
import socket
import threading
import time

import pytest
from PIL import Image

from lora_cot.errors import DataError
from lora_cot.serving import images
from lora_cot.serving.images import Fetching, image_bytes, is_public

ANY = Fetching(frozenset({"*"}), most_bytes=10_000, seconds=0.4)
BUFFER = io.BytesIO()
Image.new("RGB", (20, 10), "blue").save(BUFFER, "PNG")
PNG = BUFFER.getvalue()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001::1",
    ],
)  # fmt: skip
def test_addresses_inside_are_not_public(address):
    """Loopback, private, link-local, shared, multicast, unspecified; IPv4 inside IPv6 in all its forms."""
    assert not is_public(address)


def test_addresses_outside_are():
    """Both versions."""
    assert is_public("93.184.216.34") and is_public("2606:2800:220:1:248:1893:25c8:1946") and is_public("::ffff:8.8.8.8")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png", "http://[::1]/a.png", "http://0/a.png", "http://0x7f000001/a.png", "http://2130706433/",
        "http://0177.0.0.1/", "http://127.1/", "http://169.254.169.254/latest/meta-data/", "http://[::ffff:127.0.0.1]/",
        "http://localhost/", "http://localhost./", "http://good.example\\@127.0.0.1/", "http://user@127.0.0.1/",
        "http://good.example@127.0.0.1/", "http://127.0.0.1:22/", "http://good.example:6379/", "http://good.example /",
        "http://good.example\t/", "http:///etc/passwd", "http://[::1", "ftp://good.example/a.png", "file:///etc/passwd",
        "gopher://good.example/", "//good.example/a.png", "HTTP://127.0.0.1/", "http://gооd.example/",
    ],
)  # fmt: skip
def test_no_spelling_leads_inside(url, monkeypatch):
    """However an address is written, with any host allowed, nothing is connected to."""

    def never(*_):
        raise AssertionError("connected")

    real = socket.getaddrinfo

    def resolve(host, port, **keys):
        return real("93.184.216.34", port, **keys) if host == "good.example" else real(host, port, **keys)

    monkeypatch.setattr(socket, "create_connection", never)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(DataError):
        image_bytes(url, ANY)


def test_without_a_host_nothing_is_fetched():
    """Nor from a host that is not allowed; names must match whole."""
    with pytest.raises(DataError, match="no address"):
        image_bytes("https://good.example/a.png", Fetching())
    for url in ("https://evil.example/a.png", "https://good.example.evil.example/", "https://xgood.example/"):
        with pytest.raises(DataError, match="that host"):
            image_bytes(url, Fetching(frozenset({"good.example"})))


def test_one_private_address_among_several_is_enough(monkeypatch):
    """A name that leads to both is refused."""
    found = [(2, 1, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(DataError, match="not a public one"):
        image_bytes("http://good.example/a.png", ANY)


SEEN = []


class Handler(http.server.BaseHTTPRequestHandler):
    """A host that does what its path says."""

    def do_GET(self):
        SEEN.append((self.path, self.headers["Host"]))
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1/secret")
            self.end_headers()
        elif self.path == "/drops":
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"H")
                    time.sleep(0.05)
        else:
            data = b"x" * 50_000 if self.path == "/endless" else PNG
            self.send_response(404 if self.path == "/missing" else 200)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data)
                while self.path == "/slow":
                    self.wfile.write(b"x")
                    time.sleep(0.05)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def host(monkeypatch):
    """A server that `good.example` leads to, though each look-up after the first says something else."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    looked_up = []

    def resolve(host, port, *_, **__):
        looked_up.append(host)
        return [(2, 1, 6, "", ("93.184.216.34" if len(looked_up) == 1 else "127.0.0.1", port))]

    def dial(address, timeout=None):
        assert address == ("93.184.216.34", 80), "the checked address"
        connected = socket.socket()
        connected.settimeout(timeout)
        connected.connect(server.server_address)
        return connected

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(images.socket, "create_connection", dial)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    SEEN.clear()
    yield looked_up
    server.shutdown()


def test_an_allowed_image_is_fetched_from_the_checked_address(host):
    """One look-up: a name that changes its mind has no effect. No proxy is asked."""
    assert image_bytes("http://good.example/a.png?size=1", ANY) == PNG
    assert host == ["good.example"] and SEEN == [("/a.png?size=1", "good.example")]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("redirect", "302"),
        ("missing", "404"),
        ("endless", "more than"),
        ("drops", "fetched|longer"),
        ("slow", "longer"),
    ],
)
def test_a_host_cannot_redirect_hang_or_flood(host, path, told):
    """Time and bytes are bounded, all in all."""
    begin = time.monotonic()
    with pytest.raises(DataError, match=told):
        image_bytes(f"http://good.example/{path}", ANY)
    assert time.monotonic() - begin < 2


def test_a_large_data_uri_is_refused():
    """By its bytes, before anything looks into them."""
    with pytest.raises(DataError, match="at most"):
        image_bytes("data:image/png;base64," + base64.b64encode(b"x" * 20_000).decode(), ANY)
