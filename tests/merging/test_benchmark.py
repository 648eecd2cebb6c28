"""The benchmark beside PEFT runs, and gives the figures that docs/benchmarks.md speaks of."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_both_figures(tmp_path):
    """On a base far smaller than its documented one; what fails in a side can be read."""
    command = [sys.executable, str(ROOT / "benchmarks" / "merge.py"), "--size-gb", "0.05", "--rounds", "1", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert 0 < report["peak_over_shard_plus_adapter"] < 0.6 and 0 < report["wall_ratio"] < 2
    assert report["rounds"] == 1 and report["ours_peak_mb"] < report["peft_peak_mb"]
    broken = subprocess.run(
        [sys.executable, "-c", BROKEN], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert broken.returncode == 1 and "Traceback" in broken.stderr and "the side peft failed" in broken.stderr


BROKEN = """
import pathlib
import sys
sys.path.insert(0, "benchmarks")
from merge import run_side
run_side("peft", pathlib.Path("README.md"), 0.05)
"""
