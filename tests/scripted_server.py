"""A chat server on a real socket that answers as a test says, faults included."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-secret-0123456789"


def completion(text, finish_reason="stop", **message):
    """The body of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    return {"id": "c", "object": "chat.completion", "choices": [choice]}


def four_stages(conclusion, **texts):
    """A teacher's whole text."""
    stages = {"SUMMARY": "a plan", "CAPTION": "a red square", "REASONING": "hence", "CONCLUSION": conclusion} | texts
    return "\n\n".join(f"<{name}> {text} </{name}>" for name, text in stages.items())


def two_stages(answer, rationale="because"):
    """A teacher's whole text."""
    return f"<RATIONALE> {rationale} </RATIONALE>\n<ANSWER> {answer} </ANSWER>"


class Fault:
    """Something else than a completion."""

    def __init__(self, status=200, body="", headers=None, seconds=0.0, drop=False):
        self.status, self.headers, self.seconds, self.drop = status, headers or {}, seconds, drop
        self.body = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()


class Server:
    """What was asked of it, and what it answers."""

    def __init__(self, answer):
        self.answer, self.models = answer, ["teacher"]
        self.requests, self.keys = [], []
        self.lock = threading.Lock()

    @property
    def questions(self):
        """The text of each request."""
        return [text_of(body) for body in self.requests]


def text_of(body):
    """The text of a request's message."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@contextmanager
def serve(answer):
    """A running server.

    Args:
        answer: from a request's body and its number, a text, a body or a `Fault`; or a list of these, one a request.
    """
    if isinstance(answer, list):
        script = answer
        answer = lambda body, number: script[min(number, len(script) - 1)]  # noqa: E731
    server = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.keys.append(self.headers.get("Authorization"))
            models = server.models
            fault = models if isinstance(models, Fault) else Fault(body={"data": [{"id": name} for name in models]})
            self.send(fault)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.keys.append(self.headers.get("Authorization"))
                server.requests.append(body)
                number = len(server.requests) - 1
            got = server.answer(body, number)
            if isinstance(got, str):
                got = completion(got)
            self.send(got if isinstance(got, Fault) else Fault(body=got))

        def send(self, fault):
            time.sleep(fault.seconds)
            self.send_response(fault.status)
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(fault.body) + 100 * fault.drop))
            self.end_headers()
            self.wfile.write(fault.body)
            if fault.drop:
                self.wfile.flush()
                self.connection.close()
                self.close_connection = True

        def log_message(self, *_):
            pass

        def handle(self):
            with suppress(OSError):  # a client that has gone
                super().handle()

        def finish(self):
            with suppress(OSError):
                super().finish()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
