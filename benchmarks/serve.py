"""Our server beside `transformers serve`: the same weights, the same requests, both sides in turn in one call.

    python benchmarks/serve.py [--clients 8] [--tokens 64] [--rounds 3] [--json]

Both serve a LLaVA of random weights, float32 here, each in a process of its own with the same number of threads. Clients ask
about a picture each, greedily, for the same number of tokens; what is compared is tokens a second of all clients at once,
the latency of a client alone, and the time to the first piece of text of a stream. The best of the rounds counts for each
side. The tokens are counted by each server's own `usage`; if both did not write as many, the times cannot be compared, and
the exit status is 1.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import torch
from measuring import ROOT, command_line, device, tell  # beside this file

from lora_cot.backbones.mini.build import MiniSpec, random_base
from lora_cot.data.images import read_bytes
from lora_cot.data.shapes import make_sample

QUESTION = "Look at the picture. Which shape is at the top left, and how many others have its colour?"
START_SECONDS = 180
CLIENT = httpx2.Client(timeout=300)
"""One for all threads: making one takes longer than an answer of a small model."""
RAW = {"include_reasoning": False}
"""A model that was taught nothing writes no stage: its text is asked for as it is."""


def main() -> None:
    """Time both servers, print the ratios."""
    parser = command_line(__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer, at most")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "llava"
        make_base(folder)
        with server(ours(folder)) as first, server(theirs(folder)) as second:
            report = compare({"ours": (first, "tiny", RAW), "theirs": (second, str(folder), {})}, options)
    tell(report, options.json)


def make_base(folder: Path) -> None:
    """A LLaVA of the miniatures' shape that was taught nothing, and so never ends an answer early on purpose."""
    model, processor = random_base(MiniSpec("llava", ()))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def ours(folder: Path) -> list[str]:
    """Command of our server, without its port."""
    return [sys.executable, "-m", "lora_cot.cli", "serve", str(folder), "--name", "tiny", "--port"]


def theirs(folder: Path) -> list[str]:
    """Command of the other server, without its port."""
    script = "from transformers.cli.transformers import main; main()"
    return [sys.executable, "-c", script, "serve", str(folder), "--dtype", "float32", "--log-level", "error", "--port"]


@contextlib.contextmanager
def server(command: list[str]) -> Iterator[str]:
    """The address of a server that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, str(port)], env=env, stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(httpx2.HTTPError):
                    if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                        break
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    sys.exit(f"a server did not start:\n{log.read()[-2000:].decode()}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1/chat/completions"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def body(model: str, number: int, tokens: int, **keys: Any) -> dict[str, Any]:
    """A request about a picture of its own."""
    image = base64.b64encode(read_bytes(make_sample(number, "test", 0).images[0])).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    content = [picture, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0.0, **keys}


def asked(url: str, request: dict[str, Any]) -> tuple[float, int]:
    """Seconds, and tokens of the answer."""
    begin = time.perf_counter()
    response = CLIENT.post(url, json=request)
    response.raise_for_status()
    return time.perf_counter() - begin, response.json()["usage"]["completion_tokens"]


def first_text(url: str, request: dict[str, Any]) -> float:
    """Seconds to the first piece of text of a stream; the rest is read."""
    begin, found = time.perf_counter(), 0.0
    with CLIENT.stream("POST", url, json=request | {"stream": True}) as response:
        for line in response.iter_lines():
            if not found and line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                delta = choices[0]["delta"] if choices else {}
                found = time.perf_counter() - begin if delta.get("content") or delta.get("reasoning_content") else 0.0
    return found


def measure(url: str, model: str, keys: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """One round on one side."""
    requests = [body(model, number, options.tokens, **keys) for number in range(options.clients)]
    alone = sorted(asked(url, request)[0] for request in requests[:4])
    first_alone = sorted(first_text(url, request) for request in requests[:4])
    with ThreadPoolExecutor(options.clients) as pool:
        begin = time.perf_counter()
        counts = list(pool.map(lambda request: asked(url, request)[1], requests * 2))
        seconds = time.perf_counter() - begin
        firsts = sorted(pool.map(lambda request: first_text(url, request), requests))
    return {
        "tokens_per_second": sum(counts) / seconds,
        "single_latency": alone[1],
        "first_text_alone": first_alone[1],
        "first_text_under_load": firsts[len(firsts) // 2],
        "tokens": sum(counts),
    }


def compare(sides: dict[str, tuple[str, str, dict[str, Any]]], options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn, and what they come to."""
    for url, model, keys in sides.values():
        asked(url, body(model, 0, options.tokens, **keys))
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    asked_for = 2 * options.clients * options.tokens
    for _ in range(options.rounds):
        for name, (url, model, keys) in sides.items():
            rounds[name].append(measure(url, model, keys, options))
            if (told := rounds[name][-1]["tokens"]) != asked_for:
                sys.exit(f"{name} wrote {told:.0f} tokens, and {asked_for} were asked for: the sides cannot be compared")
            print(name, {key: round(value, 4) for key, value in rounds[name][-1].items()}, file=sys.stderr)
    best = {
        name: {key: (max if key.startswith("tokens") else min)(one[key] for one in found) for key in found[0]}
        for name, found in rounds.items()
    }
    mine, other = best["ours"], best["theirs"]
    return {
        "throughput_ratio": mine["tokens_per_second"] / other["tokens_per_second"],
        "single_latency_ratio": mine["single_latency"] / other["single_latency"],
        **{f"{name}_{key}": value for name, values in best.items() for key, value in values.items()},
        "clients": options.clients,
        "answer_tokens": options.tokens,
        "device": device(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())),
    }


if __name__ == "__main__":
    main()
