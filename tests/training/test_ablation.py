"""The benchmark of DPMM-CoT's ablations: what its arms are, what its table says, and that all of it works."""

import importlib
import json
import os
import subprocess
import sys

import pytest

from lora_cot.recipe.schema import Recipe
from tests.conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "dpmm_ablation.py"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return lambda name: importlib.import_module(name)


def test_every_arm_is_a_recipe_that_differs_in_its_model_section_alone(bench, tmp_path):
    """But for those that describe pictures; each has a name of its own."""
    script = bench("dpmm_ablation")
    made = {arm: script.recipe_of(arm, 3, 9, tmp_path) for arm in script.ARMS}
    learned = made[script.LEARNED]
    for arm, values in made.items():
        Recipe.model_validate(values | {"name": "arm"})
        if not arm.startswith(script.CAPTIONS):
            assert {key: value for key, value in values.items() if key != "model"} == {
                k: learned[k] for k in values if k != "model"
            }
            assert arm == script.LEARNED or values["model"] != learned["model"]
    assert "vision_training" not in made["fixed features"]["model"]


def run(seed, arm, right, steps=None):
    """What a training left, as far as the tables need it."""
    one = {"right": {f"q{n}": value for n, value in enumerate(right)}, "rouge_l": 0.5, "captions": 0.5}
    sets = {"questions": one} | ({"5 steps": one} if steps else {})
    return {"arm": arm, "seed": seed, "seconds": 1, "cpu_seconds": 1, "parameters": {"vision": 7, "trained": 8}, "sets": sets}


def test_arms_are_held_against_the_learned_one_on_the_same_seeds(bench):
    """Counted by hand; a seed that only one of them has counts for neither."""
    table = bench("dpmm_table")
    found = [
        run(0, "learned latents", [1, 1, 1, 0], True),
        run(1, "learned latents", [1, 0, 1, 0]),
        run(2, "learned latents", [0] * 4),
    ]
    found += [run(0, "fixed features", [1, 0, 1, 0]), run(1, "fixed features", [0, 0, 1, 0])]
    report = table.report_of(found)
    (fixed,) = report["arms"]["fixed features"].values()
    assert fixed["right"]["mean"] == 0.375 and fixed["learned_ahead"]["values"] == [0.25, 0.25]
    assert fixed["learned_ahead"]["over_questions"]["difference"] == 0.25
    learned = report["arms"]["learned latents"]
    assert learned["questions"]["learned_ahead"] is None and learned["5 steps"]["learned_ahead"]["mean"] == 0
    lines = table.tables(report | {"questions": 4, "steps": 9, "device": "here"})
    assert "| fixed features | 2 | 37.5 " in lines[4] and "| 25.0 [25.0, 25.0] |" in lines[4]


@pytest.mark.slow
def test_the_script_works_and_goes_on(tmp_path):
    """Two arms in little; a second time nothing is trained."""
    command = [sys.executable, str(SCRIPT), "--check", "--seeds", "0", "--output", str(tmp_path / "out"), "--json", "--arms"]
    command += ["learned latents", "fine-tuned features", "describing: fixed features"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    reports = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=True)
        reports.append(json.loads(done.stdout))
        assert ("seed 0" in done.stderr) == (len(reports) == 1)
    assert reports[0] == reports[1] and set(reports[0]["arms"]) == set(command[-3:])
    assert "| fine-tuned features | 1 |" in (tmp_path / "out" / "report.md").read_text()
