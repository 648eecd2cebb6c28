"""The prompts that reasoning is held against, and the benchmarks of ICoT on every kind of model."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image as PILImage

from lora_cot.data.chat import ChatEncoder
from lora_cot.errors import DataError, RunError
from lora_cot.evaluation import run
from lora_cot.evaluation.predictions import score
from lora_cot.evaluation.run import evaluate
from lora_cot.formats import FORMATS
from lora_cot.recipe import Recipe
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import FormatSection
from lora_cot.types import Exchange
from tests import published

SHORT = {"stages": {"ANSWER": {"max_new_tokens": 8}}}


@pytest.mark.parametrize(
    ("name", "end"), [("answer_only", "Answer:"), ("step_by_step", "Let's think step by step."), ("direct", None)]
)
def test_baselines_ask_as_icot_does(name, end):
    """Without reasoning, and with it; `direct` is asked without a cue. The whole text is the answer."""
    question = FORMATS[name].question(Exchange("Which is a plant?\nContext: Look."), ("fern", "newt"))
    lines = ["Which is a plant?", "Context: Look.", "Options: (A) fern (B) newt"]
    assert question.splitlines() == ([f"Question: {lines[0]}", *lines[1:], end] if end else lines)
    text = "A fern grows.\nThe answer is (A)."
    assert FORMATS[name].parse(text).answer == text


@pytest.mark.crossed
@pytest.mark.parametrize("name", ["step_by_step", "answer_only"])
@pytest.mark.parametrize("benchmark", ["m3cot", "llava_wild"])
def test_every_chat_model_can_be_measured(each_chat_base, tmp_path, benchmark, name):
    """With its own images, in a baseline's prompt; `score` says the same of what was written."""
    data = {
        "m3cot": lambda: published.m3cot(tmp_path / "data", [published.m3cot_record(n) for n in range(2)]),
        "llava_wild": lambda: published.llava_wild(tmp_path / "data", 2),
    }[benchmark]()
    output = tmp_path / "out.jsonl"
    report = evaluate(str(each_chat_base), benchmark, search=SHORT, output=output, data=str(data), format_name=name)
    assert report.accuracy.total == report.groups["Avg"].total == 2 and report.left_out == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert all(set(row["stages"]) <= {"ANSWER"} for row in rows)
    assert score(benchmark, output, str(data)).summary == report.summary


def test_every_prompt_shows_the_demonstrations(tiny_base, tmp_path, monkeypatch):
    """One-shot answers are of another setting than zero-shot ones; a model with stages has no demonstrations."""
    PILImage.new("RGB", (40, 20), "red").save(tmp_path / "a.png")
    one = {"image": "a.png", "question": "Which colour?", "steps": ["It is", [0, 0, 9, 9], "red."], "answer": "red"}
    path = tmp_path / "shots.json"
    path.write_text(json.dumps({"demonstrations": [one]}))
    prompts, encode = [], ChatEncoder.prompt

    def kept(encoder, sample, images, like=None):
        prompts.append(encode(encoder, sample, images, like))
        return prompts[-1]

    monkeypatch.setattr(ChatEncoder, "prompt", kept)
    given = {"model": str(tiny_base), "benchmark": "shapes", "limit": 2, "search": SHORT, "output": tmp_path / "out.jsonl"}
    report = evaluate(**given, format_name="step_by_step", demonstrations=path)
    assert report.accuracy.total == 2 and {prompt.images for prompt in prompts} == {3}
    path.write_text(json.dumps({"demonstrations": [one | {"answer": "blue"}]}))
    for demonstrations in (path, None):
        with pytest.raises(RunError, match=r"out\.jsonl"):
            evaluate(**given, format_name="step_by_step", demonstrations=demonstrations)
    with pytest.raises(DataError, match="no demonstration is written in the stages of the format four_stage"):
        evaluate(**given | {"search": {}}, format_name="four_stage", demonstrations=path)


def test_demonstrations_have_the_recipes_limit(tmp_path, monkeypatch):
    """Of an image's pixels; no other, and before anything is asked."""
    sections = {"format": {"name": "answer_only"}, "data": {"max_pixels": 100}}
    recipe = Recipe(name="x", model=ModelSection(base="x"), **sections)
    monkeypatch.setattr(run, "open_any", lambda *_: SimpleNamespace(recipe=recipe))
    PILImage.new("RGB", (40, 20), "red").save(tmp_path / "a.png")
    one = {"image": "a.png", "question": "Which colour?", "steps": ["It is red."], "answer": "red"}
    path = tmp_path / "shots.json"
    path.write_text(json.dumps({"demonstrations": [one]}))
    with pytest.raises(DataError, match="40×20 is more than 100 pixels"):
        evaluate("m", "shapes", demonstrations=path)


def test_a_format_must_go_with_the_model():
    """One of passes needs adapters of its own; a name that does not exist is told."""
    recipe = Recipe(name="x", model=ModelSection(base="x"))
    assert recipe.in_format(None) is recipe and recipe.in_format("direct").format.build() == FORMATS["direct"]
    assert recipe.format.name == "four_stage"
    with pytest.raises(RunError, match="--format · no format 'stepbystep' · did you mean 'step_by_step'"):
        recipe.in_format("stepbystep")
    with pytest.raises(RunError, match="--format · a format that is generated in passes needs the adapters"):
        recipe.in_format("two_stage")
    split = Recipe(name="x", model=ModelSection(base="x"), format=FormatSection(name="two_stage"))
    with pytest.raises(RunError, match="--format · a format that is generated in passes needs the adapters"):
        split.in_format("direct")
