"""A recipe that trains and then measures: one command, gone on with where it was stopped."""

import json

import pytest

from lora_cot.errors import RunError
from lora_cot.evaluation import after
from lora_cot.evaluation.after import train_and_evaluate

SEARCH = {"stages": {"RATIONALE": {"max_new_tokens": 6}, "ANSWER": {"max_new_tokens": 4}}}
MEASURED = ("evaluation.after_training=true", "evaluation.limit=6", "evaluation.batch_size=4")


@pytest.fixture
def recipe(make_recipe, make_base, tmp_path):
    """Two passes on a tiny T5, measured afterwards on six questions."""
    options = (f"model.base={make_base('t5_vision')}", "format.name=two_stage", "training.max_steps=1", *MEASURED)
    return make_recipe(tmp_path, *options, search=SEARCH)


def test_a_run_is_measured_when_it_is_trained(recipe, tmp_path):
    """The report and every answer lie in the run's folder; a second time there is nothing to do."""
    folder = train_and_evaluate(recipe, tmp_path)
    report = json.loads((folder / "evaluation.json").read_text())
    assert (report["benchmark"], report["split"], report["accuracy"]["total"]) == ("shapes", "test", 6)
    answers = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    assert [row["id"] for row in answers] == [f"test-0-{number}" for number in range(6)]
    with pytest.raises(RunError, match="there is a run in this folder already"):
        train_and_evaluate(recipe, tmp_path)


def test_a_trained_run_is_only_measured(recipe, tmp_path, monkeypatch):
    """Stopped in the evaluation, it is not trained again; a recipe that asks for none gets none."""
    with monkeypatch.context() as patch:
        patch.setattr(after, "evaluate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_and_evaluate(recipe, tmp_path)
    monkeypatch.setattr(after, "train", lambda *_: pytest.fail("trained again"))
    assert json.loads((train_and_evaluate(recipe, tmp_path) / "evaluation.json").read_text())["accuracy"]["total"] == 6


def test_a_recipe_that_asks_for_none_is_not_measured(make_recipe, tmp_path):
    """Training alone."""
    folder = train_and_evaluate(make_recipe(tmp_path, "training.max_steps=1", "data.eval=[]"), tmp_path)
    assert not (folder / "evaluation.json").exists()
