"""A short form of benchmarks/kill.py: the process is killed for real, in writes too, and nothing is lost."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been():
    """Every life goes on from a whole checkpoint, and the adapter is the uninterrupted run's, byte for byte."""
    command = [sys.executable, str(ROOT / "benchmarks" / "kill.py"), "--kills", "6", "--seed", "1", "--json"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600)
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["kills"], found["resumed"], found["equal"], found["problems"]) == (6, 6, True, [])
    assert found["runs"] >= 1 and done.returncode == 0
