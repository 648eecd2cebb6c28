"""A disk that is full, at each of the writes of a checkpoint in turn: the kernel's calls fail, whoever makes them."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT

HERE = ROOT / "tests" / "training"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler to build the failing disk with")
def test_a_disk_that_is_full_at_any_write_corrupts_nothing(make_recipe, tmp_path):
    """Half a file, a lost manifest, a failed flush: the checkpoint before stays the newest, and nothing is left over."""
    library = tmp_path / "disk_full.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "disk_full.c", "-ldl"], check=True)
    recipe = make_recipe(tmp_path, "training.max_steps=3", "training.save_strategy=steps", "training.save_steps=1")
    path = tmp_path / "full.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / "fill_disk.py"), str(library), str(path), str(tmp_path / "runs")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["written"] and found["wrong"] == []
    assert found["failed"] > 20, found
    assert set(found["places"]) == {"making room for a checkpoint", "writing a checkpoint", "finishing a checkpoint"}
