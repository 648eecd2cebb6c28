"""The demo as a user runs it: the effect that the project exists for, at the size of a laptop."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_demo_shows_the_effect(tmp_path):
    """Four stages beat direct answers, search is not below sampling, the merged model is the adapter's; in time and memory."""
    for name in ("train.py", "merge.py", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "recipes/mini/demo.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads((tmp_path / "runs/demo/report.json").read_text())
    assert report["questions"] >= 500
    several = "accuracy_more_than_one_step"
    assert report[f"four_stage_{several}"] >= report[f"direct_{several}"] + 0.15
    assert report["stage_beam_accuracy"] >= report["sample_accuracy"]
    assert report["merged_agreement"] >= 0.999
    assert report["peak_rss_gb"] < 4
    for line in ("$ accelerate launch", "$ python merge.py", "$ lora-cot eval", "$ lora-cot ask"):
        assert line in done.stdout
    assert "SUMMARY" in (tmp_path / "runs/demo/trace.html").read_text()
