"""A run of a T5 whose vision encoder was trained with it, asked, measured and served as any other."""

import base64
import json

import httpx2
import pytest

from lora_cot.checkpoints.opening import open_model
from lora_cot.data.shapes import make_sample
from lora_cot.engines.opening import engine_of
from lora_cot.evaluation.ask import ask
from lora_cot.evaluation.run import evaluate
from lora_cot.merging.merge import merge
from lora_cot.search.run import answer
from lora_cot.training.run import train
from lora_cot.types import Exchange, Sample
from tests.serving.conftest import chat
from tests.serving.test_process import process
from tests.training.test_diffusion import SEARCH

QUESTION = "How many shapes are there?"


@pytest.fixture
def run(make_recipe, make_base, diffusion_cache, tmp_path):
    """Two stages in a few steps, the encoder in full for each."""
    model = {"base": str(make_base("t5_vision")), "dtype": "float32", "vision_training": "full"}
    keys = ("format.name=two_stage", "quantization=null", "training.max_steps=2", "data.eval=[]")
    return train(make_recipe(tmp_path, *keys, model=model, search=SEARCH), tmp_path)


@pytest.fixture
def scene(tmp_path):
    """A picture to ask about."""
    path = tmp_path / "scene.png"
    path.write_bytes(make_sample(0, "test", 0).images[0])
    return path


@pytest.mark.slow
def test_it_is_asked_and_measured_as_its_merged_model_is(run, scene, tmp_path):
    """Greedy and with candidates; what both have said of a question is written as a page and as JSON."""
    merge(run, onto="full")
    search = {"strategy": "majority", "candidates": 2}
    told = {}
    for model in (run, run / "merged"):
        rows = []
        for name, keys in (("greedy", {}), ("drawn", search)):
            output = tmp_path / f"{model.name}-{name}.jsonl"
            report = evaluate(str(model), "shapes", "test", 3, keys, output)
            assert report.accuracy.total == 3 and report.failed == 0
            rows += [json.loads(line) for line in output.read_text().splitlines()]
        told[model.name] = [(row["id"], row["output"]) for row in rows]
        page, trace = tmp_path / "trace.html", tmp_path / "trace.json"
        said = [ask(open_model(str(model)), scene, QUESTION, search, trace=path).text for path in (page, trace)]
        assert said[0] == said[1] and "<html" in page.read_text()
        kept = json.loads(trace.read_text())
        assert (kept["text"], kept["stages"].keys()) == (said[1], {"RATIONALE", "ANSWER"})
        assert any(len(step["candidates"]) == 2 for step in kept["steps"])
    assert told[run.name] == told["merged"] and len(told["merged"]) == 6


@pytest.mark.slow
def test_it_is_served(run, scene):
    """By the command itself, each stage by its own encoder; with an image and without one, as the engine answers."""
    opened = open_model(str(run))
    cot_format = opened.recipe.format.build().spelled(opened.family.tag_style)
    samples = [Sample("seen", (Exchange(QUESTION),), (scene,)), Sample("blind", (Exchange(QUESTION),))]
    found = answer(engine_of(opened, cot_format), cot_format, samples, opened.recipe.search)
    picture = f"data:image/png;base64,{base64.b64encode(scene.read_bytes()).decode()}"
    with process(run) as server:
        for one, image in zip(found, (picture, None), strict=True):
            body = chat(QUESTION, image, model="tiny")
            response = httpx2.post(f"{server.address}/v1/chat/completions", json=body, timeout=60)
            (choice,) = response.json()["choices"]
            stages = [(stage["name"], stage["text"]) for stage in choice["message"]["stages"]]
            assert stages == [(stage.name, stage.text) for stage in one.parsed.stages]
    assert found[0].text != found[1].text
