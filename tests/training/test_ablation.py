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


def test_a_cell_counts_for_its_own_steps_and_questions_alone(bench, tmp_path, monkeypatch):
    """What was measured of fewer is not taken for it."""
    script = bench("dpmm_ablation")

    def trained(recipe, _):
        raise LookupError(recipe.name)

    monkeypatch.setattr("lora_cot.training.run.train", trained)
    (tmp_path / "measured").mkdir()
    names = set()
    for steps, questions in ((2, 8), (2, 200), (240, 8), (240, 200)):
        with pytest.raises(LookupError) as caught:
            script.measure(script.LEARNED, 0, steps, questions, tmp_path)
        names.add(*caught.value.args)
        (tmp_path / "measured" / f"{caught.value.args[0]}.json").write_text(json.dumps([steps, questions]))
        assert script.measure(script.LEARNED, 0, steps, questions, tmp_path) == [steps, questions]
    assert len(names) == 4


def test_starts_are_made_once_and_an_empty_folder_is_none(bench, tmp_path, monkeypatch):
    """As a run that was stopped may leave it."""
    starts = bench("dpmm_starts")
    made = []
    for name in ("_write_t5", "_write_stable", "_write_vit", "_write_labelled_vit", "_write_captions"):
        monkeypatch.setattr(starts, name, lambda *_: None)
    monkeypatch.setattr(starts.t5_diffusion, "scenes", lambda *_: None)
    monkeypatch.setattr(starts, "_write_text", lambda folder, _: made.append((folder / "text").write_text("")))
    (tmp_path / "starts").mkdir()
    for _ in range(2):
        starts.make_starts(tmp_path / "starts", small=True)
        assert len(made) == 1 and [path.name for path in tmp_path.rglob("*")] == ["starts", "text"]


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
    assert fixed["learned_ahead"]["p"] == 0 and report["arms"]["learned latents"]["5 steps"]["learned_ahead"]["p"] is None
    assert fixed["learned_ahead"]["over_questions"]["difference"] == 0.25
    learned = report["arms"]["learned latents"]
    assert learned["questions"]["learned_ahead"] is None and learned["5 steps"]["learned_ahead"]["mean"] == 0
    lines = table.tables(report | {"questions": 4, "steps": 9, "device": "here"})
    assert "| fixed features | 2 | 37.5 " in lines[4] and "| 25.0 [25.0, 25.0] | 0 |" in lines[4]


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
    assert "| fine-tuned features | 1 |" in (tmp_path / "out" / "check" / "report.md").read_text()
