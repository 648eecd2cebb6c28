"""Images from addresses: off unless a host is allowed, and never a way into the network."""

import asyncio
import base64
import contextlib
import http.server
import io
import shutil
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import replace

import pytest
from PIL import Image

from lora_cot.errors import DataError
from lora_cot.serving import fetching
from lora_cot.serving.errors import ApiError
from lora_cot.serving.fetching import Fetcher, Fetching, is_public
from lora_cot.serving.images import image_bytes
from tests.serving.conftest import chat, data_uri

ANY = Fetching(frozenset({"*"}), most_bytes=10_000, seconds=0.4)
BUFFER = io.BytesIO()
Image.new("RGB", (20, 10), "blue").save(BUFFER, "PNG")
PNG = BUFFER.getvalue()


def fetch(*urls, limits=ANY, hold=lambda size: None):
    """Images as a request gets them."""

    async def fetched():
        found = await Fetcher(limits).fetched(urls, hold)
        return [found.get(url) or image_bytes(url, limits.most_bytes) for url in urls]

    return asyncio.run(fetched())


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001::1",
        "fec0::1", "::127.0.0.1", "::ffff:0:7f00:1", "5f00::1", "192.88.99.1",
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
        fetch(url)


def test_without_a_host_nothing_is_fetched():
    """Nor from a host that is not allowed; names must match whole."""
    with pytest.raises(DataError, match="no address"):
        fetch("https://good.example/a.png", limits=Fetching())
    for url in ("https://evil.example/a.png", "https://good.example.evil.example/", "https://xgood.example/"):
        with pytest.raises(DataError, match="that host"):
            fetch(url, limits=Fetching(frozenset({"good.example"})))


def test_one_private_address_among_several_is_enough(monkeypatch):
    """A name that leads to both is refused."""
    found = [(2, 1, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(DataError, match="not a public one"):
        fetch("http://good.example/a.png")


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
def lead(monkeypatch):
    """Makes `good.example` lead to a server here; each look-up after the first says something else. Look-ups are listed."""
    looked_up = []

    def to(place, port=80):
        def resolve(host, port, *_, **__):
            looked_up.append(host)
            return [(2, 1, 6, "", ("93.184.216.34" if len(looked_up) == 1 else "127.0.0.1", port))]

        def dial(address, timeout=None):
            assert address == ("93.184.216.34", port), "the checked address"
            connected = socket.socket()
            connected.settimeout(timeout)
            connected.connect(place)
            return connected

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(fetching.socket, "create_connection", dial)
        return looked_up

    return to


@pytest.fixture
def host(lead, monkeypatch):
    """A host of plain HTTP."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    SEEN.clear()
    yield lead(server.server_address)
    server.shutdown()
    server.server_close()


def test_an_allowed_image_is_fetched_from_the_checked_address(host):
    """One look-up: a name that changes its mind has no effect. No proxy is asked."""
    assert fetch("http://good.example/a.png?size=1") == [PNG]
    assert host == ["good.example"] and SEEN == [("/a.png?size=1", "good.example")]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("redirect", "302"),
        ("missing", "404"),
        ("endless", "more than"),
        ("drops", "longer"),
        ("slow", "longer"),
    ],
)
def test_a_host_cannot_redirect_hang_or_flood(host, path, told):
    """Time and bytes are bounded, all in all."""
    begin = time.monotonic()
    with pytest.raises(DataError, match=told):
        fetch(f"http://good.example/{path}")
    assert time.monotonic() - begin < 2


def test_an_image_may_have_all_the_bytes_that_are_allowed(host):
    """And not one more."""
    limits = replace(ANY, most_bytes=len(PNG))
    assert fetch("http://good.example/a.png", limits=limits) == [PNG]
    host.clear()
    with pytest.raises(DataError, match=f"an image of more than {len(PNG) - 1} bytes"):
        fetch("http://good.example/a.png", limits=replace(ANY, most_bytes=len(PNG) - 1))


def test_a_user_in_an_address_is_refused():
    """Also before a host that is allowed: parsers disagree on where the host begins."""
    for url in ("http://user@good.example/", "http://user:secret@good.example/", "http://@good.example/"):
        with pytest.raises(DataError, match="has a user or a port"):
            fetch(url)


def test_a_large_data_uri_is_refused():
    """By its bytes, before anything looks into them."""
    with pytest.raises(DataError, match="at most"):
        fetch("data:image/png;base64," + base64.b64encode(b"x" * 20_000).decode())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A key, and certificates for two names; each is its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("good.example", "other.example"):
        command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -addext subjectAltName=DNS:{name}"
        command += f" -keyout {folder}/{name}.key -out {folder}/{name}.pem"
        subprocess.run(command.split(), check=True, capture_output=True)
    return folder


@pytest.fixture
def secure(lead, certificates, monkeypatch):
    """Makes a host of HTTPS that has the certificate of a name; the one of `trusted` is believed."""
    made = []

    def serve(name, trusted):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        made.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        made[0].socket = context.wrap_socket(made[0].socket, server_side=True)
        threading.Thread(target=made[0].serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / f"{trusted}.pem"))
        lead(made[0].server_address, 443)

    SEEN.clear()
    yield serve
    made[0].shutdown()
    made[0].server_close()


TLS = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make certificates with")


@TLS
def test_an_image_is_fetched_over_tls(secure):
    """From the checked address, under the host's name."""
    secure("good.example", "good.example")
    assert fetch("https://good.example/a.png", limits=replace(ANY, seconds=5)) == [PNG]
    assert SEEN == [("/a.png", "good.example")]


@TLS
@pytest.mark.parametrize(("name", "trusted"), [("other.example", "other.example"), ("good.example", "other.example")])
def test_a_host_that_cannot_prove_its_name_is_not_read(secure, name, trusted):
    """A certificate of another name, or of nobody that is known."""
    secure(name, trusted)
    with pytest.raises(DataError, match="could not be fetched"):
        fetch("https://good.example/a.png", limits=replace(ANY, seconds=5))
    assert SEEN == []


@pytest.mark.parametrize("drops", [False, True], ids=["silent", "in drops"])
def test_a_handshake_cannot_hang(lead, drops):
    """Nor go on for ever, a byte at a time: the thread is free soon after the request has its answer."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        lead(listening.getsockname(), 443)

        def accept():
            connected = listening.accept()[0]
            with connected, contextlib.suppress(OSError):
                for byte in b"\x16\x03\x03\x40\x00" + b"\x02" * 200:
                    time.sleep(0.05)
                    if drops:
                        connected.sendall(bytes([byte]))

        threading.Thread(target=accept, daemon=True).start()
        begin = time.monotonic()
        with pytest.raises(DataError, match="longer"):
            Fetcher(ANY)._fetch("https://good.example/a.png", begin + 0.4)
        assert time.monotonic() - begin < 1


def test_a_name_that_takes_long_to_look_up_is_given_up(monkeypatch):
    """The request is answered, though nothing can end the look-up."""
    go_on = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: go_on.wait(20) and [])
    begin = time.monotonic()

    async def give_up():
        with pytest.raises(DataError, match="longer than"):
            await Fetcher(ANY).fetched(["http://good.example/a.png"], lambda size: None)

    asyncio.run(give_up())
    assert time.monotonic() - begin < 2
    go_on.set()


def test_all_images_of_a_request_share_one_time(host, monkeypatch):
    """Each of three would be in time alone; an image that is named twice is fetched once."""
    begin = time.monotonic()
    assert fetch(*["http://good.example/a.png"] * 3, limits=replace(ANY, seconds=2)) == [PNG] * 3 and len(SEEN) == 1
    monkeypatch.setattr(fetching, "_public_address", lambda *_: time.sleep(0.2) or "93.184.216.34")
    with pytest.raises(DataError, match="longer"):
        fetch(*[f"http://good.example/{number}.png" for number in range(3)])
    assert time.monotonic() - begin < 2


def test_fetched_bytes_are_counted(host, monkeypatch):
    """As each image comes; without room, the rest is left."""
    monkeypatch.setattr(fetching, "_public_address", lambda *_: "93.184.216.34")
    held = []

    def hold(size):
        held.append(size)
        if len(held) == 2:
            raise ApiError(503, "the queue is full")

    with pytest.raises(ApiError):
        fetch(*[f"http://good.example/{number}.png" for number in range(3)], hold=hold)
    assert held == [len(PNG)] * 2 and len(SEEN) == 2


def test_slow_hosts_keep_nobody_waiting_but_those_who_name_them(serve, monkeypatch):
    """However many there are: a question with an image of its own is answered at once; who waits in vain may come again."""
    real, go_on = socket.getaddrinfo, threading.Event()

    def resolve(host, *arguments, **keys):
        return go_on.wait(20) and [] if host == "slow.example" else real(host, *arguments, **keys)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    client = serve(fetching=Fetching(frozenset({"slow.example"}), seconds=1.5, requests=5))
    found = []

    def ask(number):
        found.append(client.post("/v1/chat/completions", json=chat(image=f"http://slow.example/{number}.png")))

    asking = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in asking:
        thread.start()
    while client.service.admission.requests < 6:
        time.sleep(0.01)
    begin = time.monotonic()
    assert client.post("/v1/chat/completions", json=chat(image=data_uri())).status_code == 200
    assert time.monotonic() - begin < 1.5 and not found
    for thread in asking:
        thread.join()
    go_on.set()
    assert sorted(response.status_code for response in found) == [400] * 5 + [503]
    assert [response.headers.get("retry-after") for response in found if response.status_code == 503] == ["2"]
