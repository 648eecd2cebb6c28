"""Ten minutes at twice what a server can take: every request is answered, or refused with a time to come back.

    python benchmarks/soak.py [--seconds 600] [--json]

Clients mix single answers, streams, searches, images, wrong requests, and requests that are given up midway. What may not
happen: any other status, a queue or memory that grows, an engine that stops. The exit status says so.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import psutil
from measuring import command_line, tell  # beside this file
from serve import QUESTION, body, make_base, server

CLIENTS = 24
"""Each asks again at once: about twice what there is room for."""
QUEUE_TOKENS = 2_000
GROWTH = 1.15
"""Memory at the end, over that after a fifth of the time, at most."""
MOST_SECONDS = 30
"""That one answer in a hundred may take longer than."""


def main() -> None:
    """Run, print the counts, and end with 1 if anything happened that may not."""
    parser = command_line(__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "llava"
        make_base(folder)
        command = [sys.executable, "-m", "lora_cot.cli", "serve", str(folder), "--name", "tiny", "--rows", "16"]
        with server([*command, "--queue-tokens", str(QUEUE_TOKENS), "--port"]) as url:
            report = soak(url, options.seconds)
    tell(report, options.json)
    sys.exit(0 if report["ok"] else 1)


def soak(url: str, seconds: float) -> dict[str, Any]:
    """What came of it."""
    counts: Counter[str] = Counter()
    waits: list[float] = []
    end = time.monotonic() + seconds
    client = httpx2.Client(timeout=120, limits=httpx2.Limits(max_connections=None))
    threads = [threading.Thread(target=ask_until, args=(client, url, end, number, counts, waits)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    address = url.removesuffix("/v1/chat/completions")
    port = int(address.rpartition(":")[2])
    pid = next(c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port)
    time.sleep(seconds / 5)
    before = psutil.Process(pid).memory_info().rss
    for thread in threads:
        thread.join()
    after = psutil.Process(pid).memory_info().rss
    time.sleep(1)
    metrics = client.get(f"{address}/metrics").text
    waits = sorted(waits) or [float("inf")]
    left = [
        line for line in metrics.splitlines() if line.startswith(("lora_cot_requests_in_progress", "lora_cot_tokens_admitted"))
    ]
    idle = len(left) >= 2 and all(line.endswith(" 0.0") for line in left)
    wrong = {name: count for name, count in counts.items() if name not in ("200", "400", "503", "left")}
    report = {
        **{f"answers_{name}": count for name, count in sorted(counts.items())},
        "p50_seconds": waits[len(waits) // 2],
        "p99_seconds": waits[len(waits) * 99 // 100],
        "memory_mb": [round(before / 1e6), round(after / 1e6)],
        "memory_growth": after / before,
        "idle_at_the_end": idle,
        "seconds": seconds,
    }
    return {"ok": is_ok(report, wrong), **report}


def is_ok(report: dict[str, Any], wrong: dict[str, int]) -> bool:
    """Whether nothing happened that may not, and what had to happen did."""
    bounded = report["p99_seconds"] <= MOST_SECONDS and report["memory_growth"] <= GROWTH
    loaded = report.get("answers_200", 0) > 0 and report.get("answers_503", 0) > 0
    return not wrong and report["idle_at_the_end"] and bounded and loaded


def ask_until(client: httpx2.Client, url: str, end: float, number: int, counts: Counter[str], waits: list[float]) -> None:
    """One client."""
    rng = random.Random(number)
    while time.monotonic() < end:
        begin = time.monotonic()
        try:
            name = ask(client, url, rng)
        except httpx2.HTTPError as error:
            name = type(error).__name__
        counts[name] += 1
        if name == "200":
            waits.append(time.monotonic() - begin)
        if name == "503":
            time.sleep(0.2)


def ask(client: httpx2.Client, url: str, rng: random.Random) -> str:
    """One request; its status, or `left`."""
    kind = rng.choice(("plain", "plain", "image", "beam", "vote", "stream", "leave", "wrong"))
    request = body("tiny", rng.randrange(50), rng.choice((8, 32, 128)))
    if kind != "image":
        request["messages"][0]["content"] = QUESTION
    if kind in ("beam", "vote"):
        request["search"] = {"strategy": "stage_beam" if kind == "beam" else "majority", "candidates": 4}
        request["temperature"] = 0.8
    if kind == "wrong":
        request["n"] = -1
    if kind not in ("stream", "leave"):
        response = client.post(url, json=request)
        good = response.status_code != 503 or "retry-after" in response.headers
        return str(response.status_code) if good else "503 without a time"
    with client.stream("POST", url, json=request | {"stream": True, "include_reasoning": False}) as response:
        last = ""
        for count, line in enumerate(response.iter_lines()):
            if kind == "leave" and count > 6:
                return "left"
            if '"error"' in line and response.status_code == 200:
                return "error in a stream"
            last = line or last
    if response.status_code == 200 and last != "data: [DONE]":
        return "a stream without an end"
    good = response.status_code != 503 or "retry-after" in response.headers
    return str(response.status_code) if good else "503 without a time"


if __name__ == "__main__":
    main()
