"""The client of model servers against a real socket: what is tried again, what is not, and what no text may hold."""

import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from email.utils import formatdate

import pytest

from lora_cot.engines.chat import KEY_VARIABLE, ChatServer, Patience, base_url, read_key
from lora_cot.engines.retries import Circuit, Retries, retry_after
from lora_cot.errors import AccessError, EngineError, RejectedError
from tests.scripted_server import KEY, Fault, completion, serve

QUICK = Patience(timeout_seconds=5, tries=3, first_wait_seconds=0.01, longest_wait_seconds=2)
BODY = {"model": "teacher", "messages": [{"role": "user", "content": "?"}]}
HALF = json.dumps(completion("x" * 500))[:300]


@pytest.fixture
def ask():
    """(what one request came to, the server) with this script."""

    def run(*script, patience=QUICK, key=KEY):
        with serve(list(script)) as server:
            client = ChatServer(server.url, key, patience)
            try:
                return client.ask(BODY).replies, server
            except EngineError as error:
                return error, server
            finally:
                client.close()

    return run


TRANSIENT = {
    "500": Fault(500, {"error": {"message": "oops"}}),
    "502 with a page": Fault(502, "<html>Bad Gateway</html>"),
    "429": Fault(429, {"error": "slow down"}, {"Retry-After": "0"}),
    "408": Fault(408),
    "dropped in the middle": Fault(body=HALF, drop=True),
    "half a JSON": Fault(body=HALF),
    "no JSON": Fault(body="<html>hello</html>"),
    "not UTF-8": Fault(body=b'{"choices": [{"message": {"content": "\xff"}}]}'),
    "nothing": Fault(),
    "no choices": Fault(body={"id": "c"}),
    "an empty list of choices": Fault(body={"choices": []}),
    "a choice without a message": Fault(body={"choices": [{"text": "?"}]}),
    "a list": Fault(body=[]),
    "broken compression": Fault(body="no gzip", headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
def test_a_passing_fault_is_tried_again(ask, fault):
    """And the same fault for good is an error after so many tries, which says where and how often."""
    replies, server = ask(fault, "yes")
    assert [reply.text for reply in replies] == ["yes"] and len(server.requests) == 2
    error, server = ask(fault)
    assert type(error) is EngineError and len(server.requests) == QUICK.tries
    assert str(error).startswith(f"{server.url} · no answer after 3 tries: ") and KEY not in str(error)


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (400, RejectedError, "it answers 400: no such thing"),
        (413, RejectedError, "it answers 413"),
        (422, RejectedError, "it answers 422"),
        (401, AccessError, "give a key that it takes: --engine-key-file, or the variable OPENAI_API_KEY"),
        (403, AccessError, "give a key that it takes"),
        (404, AccessError, "/v1/chat/completions was asked) and the model's name"),
        (307, AccessError, "it is elsewhere · name that address: http://localhost/other"),
    ],
)
def test_a_lasting_fault_is_not_tried_again(ask, status, kind, told):
    """One request, and the remedy; a redirection is not followed, since the key would go with it."""
    error, server = ask(Fault(status, {"error": {"message": "no such\nthing"}}, {"Location": "http://localhost/other"}), "yes")
    assert type(error) is kind and told in str(error) and len(server.requests) == 1
    assert error.exit_code == (2 if kind is AccessError else 1)


def test_a_server_that_asks_for_a_wait_gets_it(ask):
    """In seconds; one that asks for longer than anybody would wait counts as one that does not answer."""
    begin = time.monotonic()
    replies, _ = ask(Fault(429, headers={"Retry-After": "0.5"}), "yes")
    assert replies[0].text == "yes" and time.monotonic() - begin >= 0.5
    error, server = ask(Fault(503, headers={"Retry-After": "3600"}))
    assert len(server.requests) == 1 and "it answers 503, and asks to wait 3600 s" in str(error)


@pytest.mark.parametrize(("value", "low", "high"), [("7", 7, 7), ("-1", 0, 0), ("0.5", 0.5, 0.5)])
def test_retry_after_in_seconds(value, low, high):
    assert low <= retry_after(value) <= high


def test_retry_after_as_a_date():
    """The header's other form; what is neither is no wait."""
    assert 28 <= retry_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert retry_after(formatdate(time.time() - 30, usegmt=True)) == 0
    assert retry_after("soon") is None and retry_after("") is None


def test_waits_double_are_jittered_and_bounded():
    """At most the longest wait, never less than half of the doubled one."""
    patience = Patience(tries=9, first_wait_seconds=1, longest_wait_seconds=8)
    for tried, whole in enumerate([1, 2, 4, 8, 8], 1):
        waits = {patience.wait(tried, None) for _ in range(50)}
        assert len(waits) > 1 and all(whole / 2 <= wait <= whole for wait in waits)
    assert patience.wait(1, 5.0) == 5.0 and patience.wait(9, None) is None and patience.wait(1, 9.0) is None


def test_a_slow_answer_is_given_up(ask):
    """Whether nothing comes at all, or a byte now and then."""
    short = Patience(timeout_seconds=0.3, tries=2, first_wait_seconds=0.01)
    error, server = ask(Fault(seconds=1), patience=short)
    assert "it took longer than 0.3 s" in str(error) and len(server.requests) == 2


DROPS = {
    "headers": (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
    "nothing after headers": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b""),
}


@pytest.mark.parametrize(("begin_with", "drop"), DROPS.values(), ids=DROPS)
def test_a_server_that_sends_drop_by_drop_is_given_up(begin_with, drop):
    """Each byte comes in time, the answer does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        import threading

        def drip():
            connection, _ = listener.accept()
            with connection:
                connection.sendall(begin_with)
                try:
                    for _ in range(100):
                        connection.sendall(drop)
                        time.sleep(0.05)
                except OSError:
                    pass

        threading.Thread(target=drip, daemon=True).start()
        patience = Patience(timeout_seconds=0.4, tries=1)
        client = ChatServer(f"http://127.0.0.1:{listener.getsockname()[1]}", None, patience)
        begin = time.monotonic()
        with pytest.raises(EngineError, match=r"no answer after 1 try: it took longer than 0\.4 s"):
            client.ask(BODY)
        assert time.monotonic() - begin < 2


def test_nobody_there():
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with pytest.raises(EngineError, match="no answer after 3 tries: it cannot be reached · see that the server runs"):
        ChatServer(url, None, QUICK).ask(BODY)


def test_an_answer_without_end_is_cut_off(ask, monkeypatch):
    """No server fills our memory."""
    monkeypatch.setattr("lora_cot.engines.transport.MOST_BYTES", 1000)
    error, _ = ask("x" * 5000)
    assert "the connection broke off" in str(error)


def test_the_key_is_sent_and_in_no_text(ask):
    """Not in what a server tells back, be it an error, a text or a refusal; without a key no header goes out."""
    error, server = ask(Fault(401, {"error": {"message": f"wrong key {KEY}"}}))
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert KEY not in str(error) and "wrong key ***" in str(error)
    (reply,), _ = ask(completion(f"your key is {KEY}", refusal=f"no, {KEY}"))
    assert KEY not in repr(reply) and "***" in reply.text and "***" in reply.refusal
    assert set(ask("yes", key=None)[1].keys) == {None}


def test_what_a_choice_holds(ask):
    """Text, reason of its end, refusal; of several all."""
    body = completion("a", "length")
    body["choices"] += completion(None, "stop", refusal="no")["choices"]
    replies, _ = ask(body)
    assert [(r.text, r.finish_reason, r.refusal) for r in replies] == [("a", "length", ""), ("", "stop", "no")]


def test_models(ask):
    """A list where there is one; none where the server has none; a wrong key is an error here too."""
    with serve("yes") as server:
        client = ChatServer(server.url, KEY, QUICK)
        assert [one.id for one in client.listed()] == ["teacher"]
        for status in (404, 405, 400):
            server.models = Fault(status)
            assert client.listed() is None
        server.models = Fault(401)
        with pytest.raises(AccessError):
            client.listed()


def test_a_deadline_bounds_the_answer_and_the_waits():
    """Neither a slow answer nor a wait before the next try goes beyond it, and the server is not blamed for either."""
    patient = Patience(timeout_seconds=30, tries=9, first_wait_seconds=30)
    for fault in (Fault(seconds=1), Fault(500)):
        with serve([fault]) as server:
            retries = Retries(Circuit(most=1))
            begin = time.monotonic()
            with pytest.raises(EngineError, match="no answer after 1 try"):
                ChatServer(server.url, None, patient).ask(BODY, begin + 0.2, retries)
            assert time.monotonic() - begin < 0.8 and not retries.circuit.is_open


def test_tries_are_shared():
    """By all requests of one search, as a count and as seconds with the waits in them; another search has its own."""
    for count, seconds, asked in ((2, 60, 1 + 2), (99, 0.0, 1)):
        with serve([Fault(500)]) as server:
            client, circuit = ChatServer(server.url, None, QUICK), Circuit(most=99)
            retries = Retries(circuit, count, seconds)
            for _ in range(2):
                with pytest.raises(EngineError):
                    client.ask(BODY, retries=retries)
            assert len(server.requests) == asked + 1
            with pytest.raises(EngineError, match="after 3 tries"):
                client.ask(BODY, retries=Retries(circuit))


def test_a_circuit_opens_and_closes(monkeypatch):
    """After so many in a row, for so long; an answer between, a refusal too, begins the count anew."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    circuit = Circuit(most=2, rest_seconds=5)
    told = [(False, False), (True, False), (False, False), (False, True)]
    for answered, opens in told:
        circuit.tell(answered)
        assert circuit.is_open is opens
    now[0] += 5
    assert not circuit.is_open
    circuit.tell(False)
    assert circuit.is_open
    now[0] += 5
    circuit.tell(True)
    circuit.tell(False)
    assert not circuit.is_open


def test_an_answer_begins_the_count_anew():
    """Requests that fail now and then open nothing."""
    with serve([Fault(500), "yes", Fault(500), Fault(500)]) as server:
        client, retries = ChatServer(server.url, None, Patience(tries=1)), Retries(Circuit(most=2))
        opens = []
        for fails in (True, False, True, True):
            with pytest.raises(EngineError) if fails else nullcontext():
                client.ask(BODY, retries=retries)
            opens.append(retries.circuit.is_open)
        assert opens == [False, False, False, True]


def test_a_refusal_is_an_answer():
    """The server lives."""
    with serve([Fault(400)]) as server:
        retries = Retries(Circuit(most=1))
        with pytest.raises(RejectedError):
            ChatServer(server.url, None, QUICK).ask(BODY, retries=retries)
        assert not retries.circuit.is_open
        server.answer = lambda *_: Fault(500)
        with pytest.raises(EngineError, match="no answer"):
            ChatServer(server.url, None, Patience(tries=1)).ask(BODY, retries=retries)
        with pytest.raises(EngineError, match="1 requests in a row got no answer"):
            ChatServer(server.url, None, QUICK).ask(BODY, retries=retries)
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "image", ["data:image/png;base64,iVBORw0KGgo", "A" * 100, "x data:image/jpeg;base64," + "/9j4+AQ=" * 20]
)
def test_an_image_that_is_told_back_is_left_out(ask, image):
    """Servers repeat what they refuse."""
    error, _ = ask(Fault(400, {"error": {"message": f"bad url {image} of yours"}}))
    assert "bad url" in str(error) and "…" in str(error) and "of yours" in str(error)
    assert not re.search("iVBOR|AAAA|9j4", str(error))


def test_a_closed_client_waits_no_longer():
    """Neither for a next try nor for another answer."""
    with serve([Fault(500)]) as server:
        client = ChatServer(server.url, None, Patience(first_wait_seconds=30))
        client.close()
        begin = time.monotonic()
        with pytest.raises(EngineError):
            client.ask(BODY)
        assert time.monotonic() - begin < 1 and server.requests == []


@pytest.mark.parametrize("fault", [Fault(seconds=2), Fault(500)], ids=["an answer", "the next try"])
@pytest.mark.parametrize("whole", [False, True], ids=["a search", "all"])
def test_what_is_given_up_is_waited_for_no_longer(fault, whole):
    """Whatever it waits for, at once; it says nothing of the server. Of one search: others are answered."""
    circuit = Circuit(most=1)
    mine, other = Retries(circuit), Retries(circuit)
    with serve([fault, "yes"]) as server, ThreadPoolExecutor(1) as pool:
        client = ChatServer(server.url, None, Patience(first_wait_seconds=30))
        asking = pool.submit(client.ask, BODY, retries=mine)
        while not server.requests:
            time.sleep(0.01)
        time.sleep(0.1)
        begin = time.monotonic()
        client.close() if whole else mine.waits.give_up()
        with pytest.raises(EngineError):
            asking.result(timeout=5)
        assert time.monotonic() - begin < 0.5 and not circuit.is_open
        with pytest.raises(EngineError):
            client.ask(BODY, retries=mine)
        assert len(server.requests) == 1
        if not whole:
            assert client.ask(BODY, retries=other).replies[0].text == "yes"


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        ("http://host:8000/v1/", "http://host:8000/v1"),
        ("https://host/openai/v1/chat/completions", "https://host/openai/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_addresses(given, base):
    """With or without what OpenAI's own clients want."""
    assert base_url(given) == base


@pytest.mark.parametrize(
    "given", ["", "host:8000", "ftp://host", "http://", "/v1", f"http://me:{KEY}@host", f"http://host?k={KEY}"]
)
def test_what_is_no_address_is_refused(given):
    """And a key in it is not repeated."""
    with pytest.raises(AccessError, match="expected http://HOST:PORT/v1") as caught:
        base_url(given)
    assert KEY not in str(caught.value)


def test_keys(tmp_path, monkeypatch):
    """From a file, or the environment; a file that holds none is refused without repeating it."""
    path = tmp_path / "key"
    monkeypatch.setenv(KEY_VARIABLE, "from-environment")
    path.write_text(f"{KEY}\n")
    assert (read_key(path), read_key(None)) == (KEY, "from-environment")
    monkeypatch.delenv(KEY_VARIABLE)
    assert read_key(None) is None
    for content in (b"", b"\n", f"{KEY} {KEY}".encode(), b"\xff"):
        path.write_bytes(content)
        with pytest.raises(AccessError) as caught:
            read_key(path)
        assert KEY not in str(caught.value)
    with pytest.raises(AccessError, match="cannot be read"):
        read_key(tmp_path / "none")
