"""A server of canned answers in the shape of ours, for the page. What a question begins with says how it is answered."""

import json
import mimetypes
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import lora_cot.serving

PAGE = f"{lora_cot.serving.__path__[0]}/page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
EVIL = "<img src=x onerror=alert(1)> & <script>alert(2)</script>"
SEARCH = {
    "default": {"strategy": "greedy", "candidates": 4},
    "reasoning_effort": {"none": {"strategy": "greedy"}, "high": {"strategy": "stage_beam", "candidates": 4}},
    "strategies": ["greedy", "majority", "stage_beam"],
    "max_candidates": 16,
    "stages": ["SUMMARY", "CONCLUSION"],
}
MODELS = [{"id": "one", "object": "model", "x_search": SEARCH}, {"id": "two", "object": "model"}]


def candidate(text, score, chosen=False, **keys):
    values = {"tokens": 7, "mean_logprob": -0.2, "closed": True, "kept": chosen, "number": 0, "parent": None}
    return {"text": text, "score": score, "chosen": chosen, "ended": "stop", "problem": "", "answer": None, **values, **keys}


def decided(name, texts, text, unit="wins"):
    """A stage of a search, its second candidate chosen; texts of a judge's failures too."""
    found = [candidate(one, [0.0, 2.0, 1.0][place % 3], place == 1) for place, one in enumerate(texts)]
    found.append(candidate("", None, closed=False, ended="failed", problem="no route"))
    pairs = [(0, 1, -0.7, False, 1, False), (1, 2, 0.1, True, 1, False), (1, 3, None, False, 1, True)]
    names = ("first", "second", "margin", "flipped", "winner", "failed")
    comparisons = [dict(zip(names, pair, strict=True)) | {"said": ""} for pair in pairs]
    return {"name": name, "text": text, "complete": True, "score": 2.0, "scored_by": unit, "candidates": found} | {
        "comparisons": comparisons,
        "margin": 1.0,
        "seconds": 0.1,
    }


def said(text):
    return {"reasoning_content": text, "reasoning": text}


USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 20,
    "search": {"strategy": "stage_beam", "generated_tokens": 80, "calls": {"generate": 2, "judge": 6}, "judge_failures": 1}
    | {"stopped": "complete"},
}
BEAM = [
    {**said("I will count."), "stage": decided("SUMMARY", ["bad " + EVIL, "I will count.", "so so"], "I will count.")},
    {**said("\n\nTwo circles."), "stage": decided("CAPTION", ["One.", "Two circles.", "Many."], "Two circles.")},
    {"content": "2", "stage": decided("CONCLUSION", ["1", "2", "3"], "2")},
]
TOKENS = [{**said(word), "stage": {"name": "SUMMARY"}} for word in ("I ", "will ", "count.")] + [
    {**said("\n\nTwo."), "stage": {"name": "CAPTION"}},
    {"content": "The "},
    {"content": EVIL},
    {"stage": decided(None, ["a", "b", "c"], "b", "logprob")},
]
ALONE = decided(None, [], "b", "logprob") | {"candidates": [candidate("b", -0.2, True)], "comparisons": []}
STREAMS = {
    "tokens": TOKENS,
    "greedy": [TOKENS[0], {"content": "2"}, {"stage": ALONE}],
    "twice": [{**said("One."), "stage": decided("CAPTION", ["1", "2", "3"], "One.")}] * 2,
    "silent": [{"stage": ALONE}],
    "sampled": [{**said("I count."), "content": "2", "stage": ALONE}],
}
"""By the first word of a question; stages of a beam for any other."""


class Fake(ThreadingHTTPServer):
    """What it was asked, and whether a client left."""

    daemon_threads = True

    def __init__(self, key=None):
        self.key, self.asked, self.left, self.release = key, [], threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def send(self, status, body, kind="application/json", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def fail(self, status, message, **headers):
        self.send(status, {"error": {"message": message, "type": "x", "param": None, "code": None}}, **headers)

    def is_known(self):
        known = self.server.key in (None, self.headers.get("Authorization", "").removeprefix("Bearer "))
        if not known:
            self.fail(401, "no valid key")
        return known

    def do_GET(self):
        if self.path == "/v1/models":
            return self.is_known() and self.send(200, {"data": MODELS})
        try:
            with open(f"{PAGE}{'/index.html' if self.path == '/' else self.path}", "rb") as file:
                data = file.read()
        except OSError:
            return self.fail(404, "no such address")
        kind = mimetypes.guess_type(self.path)[0] or "text/html"
        return self.send(200, data, kind, Content_Security_Policy=POLICY, X_Content_Type_Options="nosniff")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.is_known():
            return
        self.server.asked.append(body)
        last = body["messages"][-1]["content"]
        question = last if isinstance(last, str) else last[-1]["text"]
        if question.startswith("full"):
            self.fail(503, "the queue is full", Retry_After=7)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self.stream(question.partition(" ")[0])
        except OSError:
            self.server.left.set()

    def tell(self, value):
        self.wfile.write(b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n")
        self.wfile.flush()

    def chunk(self, delta, reason=None):
        self.tell({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    def stream(self, kind):
        deltas = STREAMS.get(kind, BEAM)
        self.chunk({"role": "assistant", "content": ""})
        self.wfile.write(b": ping\n\n")
        self.chunk(deltas[0])
        if kind == "broken":
            return self.tell({"error": {"message": "the model ran out of memory"}})
        if kind == "cut":
            return None
        while kind == "slow" and not self.server.release.wait(0.05):
            self.wfile.write(b": ping\n\n")
            self.wfile.flush()
        for delta in deltas[1:]:
            self.chunk(delta)
        self.chunk({"fault": "</CONCLUSION> is missing"} if kind == "tokens" else {}, "length" if kind == "tokens" else "stop")
        self.tell({"choices": [], "usage": USAGE})
        return self.tell(b"[DONE]")
