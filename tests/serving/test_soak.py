"""Twenty seconds of the soak; ten minutes are a command of their own."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "answers_200": 5, "answers_503": 5, "p99_seconds": 3.0, "memory_growth": 1.01, "idle_at_the_end": True,
}  # fmt: skip


@pytest.fixture
def benchmarks(monkeypatch):
    """The two scripts, as modules."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import serve
    import soak

    return serve, soak


def test_a_soak_is_not_ok_beyond_its_bounds(benchmarks):
    """Each of them alone: time, memory, what is left, and that there was a load at all."""
    _, soak = benchmarks
    assert soak.is_ok(GOOD, {})
    for wrong in (
        {"p99_seconds": soak.MOST_SECONDS + 1}, {"memory_growth": soak.GROWTH + 0.01}, {"idle_at_the_end": False},
        {"answers_200": 0}, {"answers_503": 0}, {"p99_seconds": float("inf")},
    ):  # fmt: skip
        assert not soak.is_ok({**GOOD, **wrong}, {}), wrong
    assert not soak.is_ok(GOOD, {"500": 1})


def test_sides_that_write_different_numbers_of_tokens_are_not_compared(benchmarks, monkeypatch):
    """The one that writes less would look faster."""
    serve, _ = benchmarks
    options = argparse.Namespace(clients=2, tokens=10, rounds=1)
    monkeypatch.setattr(serve, "asked", lambda *_: (1.0, 10))
    figures = dict.fromkeys(("tokens_per_second", "single_latency", "first_text_alone", "first_text_under_load"), 1.0)
    sides = {"ours": ("", "", {}), "theirs": ("", "", {})}
    counts = iter([40, 40, 40, 39])
    monkeypatch.setattr(serve, "measure", lambda *_: {**figures, "tokens": next(counts)})
    assert serve.compare(sides, options)["throughput_ratio"] == 1
    with pytest.raises(SystemExit, match="theirs wrote 39 tokens, and 40 were asked for"):
        serve.compare(sides, options)


@pytest.mark.slow
def test_twice_what_it_can_take():
    """Every request is answered, or refused with a time to come back; nothing is left at the end."""
    command = [sys.executable, "benchmarks/soak.py", "--seconds", "20", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and report["ok"], report
