"""A base of the hub is merged from its cache, at the commit that the recipe names."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from lora_cot.checkpoints.folders import write_recipe
from tests.conftest import ROOT
from tests.merging.conftest import layers_of, make_adapter, recipe_of, rewrite, tensors_of

COMMITS = {"main": "a" * 40, "old": "b" * 40}


@pytest.fixture
def cache(published, tmp_path):
    """A hub cache with two commits of a base; the old one's weights are doubled."""
    repository = tmp_path / "cache" / "models--somebody--base"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMITS["main"])
    for name, commit in COMMITS.items():
        folder = repository / "snapshots" / commit
        folder.parent.mkdir(exist_ok=True)
        if name == "main":
            shutil.copytree(published("llava"), folder)
        else:
            rewrite(published("llava"), folder, {}, change=lambda _, tensor: tensor * 2)
        (folder / "README.md").write_text("a card that is not ours")
        (folder / "LICENSE.txt").write_text("a licence")
    return tmp_path / "cache"


@pytest.mark.slow
@pytest.mark.parametrize("revision", [None, COMMITS["old"]])
def test_the_commit_of_the_recipe(published, cache, tmp_path, revision):
    """Weights and all that goes along come from it; its licence too, its card not."""
    make_adapter(published("llava"), tmp_path / "adapter", target_modules=layers_of("llava"))
    write_recipe(recipe_of("somebody/base", model={"revision": revision}), tmp_path / "adapter")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "merge.py"), str(tmp_path / "adapter"), "--no-verify", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["onto"], report["probes"], report["base"]) == ("full", 0, "somebody/base")
    folder = tmp_path / "adapter-merged"
    there = {path.name for path in folder.iterdir()}
    assert {"LICENSE.txt", "tokenizer.json", "config.json"} <= there
    card = (folder / "README.md").read_text()
    assert "a card that is not ours" not in card and "base_model: somebody/base" in card
    assert "license_link: LICENSE.txt" in card
    base = tensors_of(cache / "models--somebody--base" / "snapshots" / COMMITS["old" if revision else "main"])
    merged = tensors_of(folder)
    assert base.keys() == merged.keys()
    same = [name for name in base if torch.equal(base[name], merged[name])]
    assert 0 < len(same) < len(base) and any("lm_head" in name for name in same)
