"""A recipe that trains and then measures: one command, gone on with where it was stopped."""

import json
from dataclasses import replace

import pytest

from lora_cot.data import shapes
from lora_cot.data.rows import Collected
from lora_cot.errors import LoraCotError, RunError
from lora_cot.evaluation import after
from lora_cot.evaluation.after import train
from lora_cot.evaluation.benchmarks import BENCHMARKS
from lora_cot.evaluation.run import evaluate

SEARCH = {"stages": {"RATIONALE": {"max_new_tokens": 6}, "ANSWER": {"max_new_tokens": 4}}}
MEASURED = ("evaluation.after_training=true", "evaluation.limit=6", "evaluation.batch_size=4")


@pytest.fixture
def recipe(make_recipe, make_base, tmp_path):
    """Two passes on a tiny T5, measured afterwards on six questions."""
    options = (f"model.base={make_base('t5_vision')}", "format.name=two_stage", "training.max_steps=1", *MEASURED)
    return make_recipe(tmp_path, *options, search=SEARCH)


def test_a_run_is_measured_when_it_is_trained(recipe, tmp_path):
    """The report and every answer lie in the run's folder; a second time there is nothing to do."""
    folder = train(recipe, tmp_path)
    report = json.loads((folder / "evaluation.json").read_text())
    assert (report["benchmark"], report["split"], report["accuracy"]["total"]) == ("shapes", "test", 6)
    answers = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    assert [row["id"] for row in answers] == [f"test-0-{number}" for number in range(6)]
    written = [json.loads(line) for line in (folder / "written" / "rationale" / "test.jsonl").read_text().splitlines()]
    assert written == [{"id": row["id"], "output": row["stages"].get("RATIONALE", "")} for row in answers]
    assert any(row["output"] for row in written)
    with pytest.raises(RunError, match="there is a finished run in this folder already"):
        train(recipe, tmp_path)


@pytest.mark.slow
def test_a_trained_run_is_only_measured(recipe, tmp_path, monkeypatch):
    """Stopped in the evaluation, it is not trained again; a recipe that asks for none gets none."""
    with monkeypatch.context() as patch:
        patch.setattr(after, "evaluate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe, tmp_path)
    monkeypatch.setattr(after, "train_alone", lambda *_: pytest.fail("trained again"))
    fewer = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"limit": 5})})
    assert json.loads((train(fewer, tmp_path) / "evaluation.json").read_text())["accuracy"]["total"] == 5
    (tmp_path / recipe.name / "evaluation.json").unlink()
    assert json.loads((train(recipe, tmp_path) / "evaluation.json").read_text())["accuracy"]["total"] == 6


def test_a_recipe_that_asks_for_none_is_not_measured(make_recipe, tmp_path):
    """Training alone."""
    folder = train(make_recipe(tmp_path, "training.max_steps=1", "data.eval=[]"), tmp_path)
    assert not (folder / "evaluation.json").exists()


@pytest.mark.parametrize(
    "wrong", [{"split": "tset"}, {"benchmark": "scienceqa"}, {"benchmark": "scienceqa", "data": "nowhere"}]
)
def test_an_evaluation_that_cannot_be_is_told_before_training(recipe, tmp_path, monkeypatch, wrong):
    """Not after a night of it."""
    monkeypatch.setattr(after, "train_alone", lambda *_: pytest.fail("trained"))
    told = recipe.evaluation.model_copy(update=wrong)
    with pytest.raises(LoraCotError):
        train(recipe.model_copy(update={"evaluation": told}), tmp_path)


@pytest.mark.slow
def test_questions_of_more_images_than_a_model_sees_are_left_out(recipe, tmp_path, monkeypatch):
    """And counted; the others are answered."""
    two = shapes.make_sample(0, "test", 0)
    found = Collected([replace(two, id="two", images=two.images * 2), shapes.make_sample(1, "test", 0)], total=2)
    folder = after.train_alone(recipe, tmp_path)
    chosen = replace(BENCHMARKS["shapes"], load=lambda _: found)
    monkeypatch.setitem(BENCHMARKS, "shapes", chosen)
    report = evaluate(str(folder))
    assert (report.accuracy.total, report.left_out) == (1, 1)
