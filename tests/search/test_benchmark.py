"""The benchmark of searches runs, and tells what it is asked for."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_benchmark_gives_its_ratios():
    """Both sides write the tokens that they should, which the script itself asserts; ratios are only seen to be numbers."""
    command = [sys.executable, str(ROOT / "benchmarks" / "search.py"), "--rounds", "1", "--json", "--bases", "tiny/mllama"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)["models"]["mllama"]
    names = ("speedup_n4", "speedup_n10", "cost_vs_greedy_n4", "speedup_n4_batch8", "speedup_n10_batch8")
    assert all(found[name] > 0 for name in names)
    assert found["speedup_n4"] > 2, "far below what any machine has shown"
