"""Twenty seconds of the soak; ten minutes are a command of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_twice_what_it_can_take():
    """Every request is answered, or refused with a time to come back; nothing is left at the end."""
    command = [sys.executable, "benchmarks/soak.py", "--seconds", "20", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and report["ok"], report
