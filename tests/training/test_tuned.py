"""Runs of a T5 whose vision encoder is trained with it: trained, merged, opened, stopped and gone on with as any other."""

import pytest
import torch
from safetensors.torch import load_file

from lora_cot.checkpoints.opening import open_model
from lora_cot.data.shapes import make_sample
from lora_cot.evaluation.ask import ask
from lora_cot.merging.merge import merge
from lora_cot.training.run import train
from tests.training.test_diffusion import SEARCH, logits_of
from tests.training.test_resume import KilledError, assert_same, left, stop_after

LORA = ("model.vision_training=lora", "lora.parts=[language_model, vision_encoder]")
CHOICES = {
    "full": ("model.vision_training=full", "quantization=null"),
    "lora": (*LORA, "quantization=null"),
    "nf4": (*LORA, "quantization={load_in_4bit: true, skip_parts: [lm_head]}"),
}


@pytest.fixture
def recipe(make_recipe, make_base, diffusion_cache, tmp_path):
    """A recipe on a T5 that has learned to see by features of a frozen encoder."""
    model = {"base": str(make_base("t5_vision")), "dtype": "float32"}
    keys = ("training.max_steps=3", "training.learning_rate=1e-2", "data.eval.0.limit=2", "training.eval_generations=1")
    return lambda *more, **sections: make_recipe(tmp_path, *keys, *more, **{"model": model, "search": {}, **sections})


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_a_merged_model_is_the_adapters(recipe, tmp_path, choice):
    """An encoder that is trained in full travels with the adapter; the merged folder opens without the recipe."""
    run = train(recipe("format.name=answer_only", *CHOICES[choice]), tmp_path)
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    whole = any("vision_encoder" in name and "lora_" not in name for name in adapter)
    assert any("vision_encoder" in name for name in adapter) and whole == (choice == "full")
    tuned = open_model(str(run), "none")
    (report,) = merge(run, onto="full").reports
    assert report.adapter_vs_merged.top1_agreement >= (0.95 if choice == "nf4" else 1)
    (run / "merged" / "recipe.yaml").unlink()
    merged = open_model(str(run / "merged"))
    assert merged.backbone.base_model.config.vision_training == ("full" if choice == "full" else "lora")
    (one,) = tuned.recipe.format.build().passes
    torch.testing.assert_close(logits_of(merged, one), logits_of(tuned, one), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_two_stages_from_a_recipe_to_an_answer(recipe, tmp_path):
    """A rationale and an answer, each by an encoder of its own; run and merged model answer alike."""
    keys = ("format.name=two_stage", "training.hand_on=predicted")
    run = train(recipe(*keys, *CHOICES["full"], search=SEARCH), tmp_path)
    merge(run, onto="full")
    image = tmp_path / "scene.png"
    image.write_bytes(make_sample(0, "test", 0).images[0])
    said = [ask(open_model(str(model)), image, "How many shapes are there?").text for model in (run, run / "merged")]
    assert said[0] == said[1] and said[0]


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(recipe, tmp_path, monkeypatch):
    """The encoder's weights are among what is saved."""
    keys = ("format.name=answer_only", *CHOICES["full"], "training.save_strategy=steps", "training.save_steps=1")
    whole = left(train(recipe(*keys, "data.eval=[]"), tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KilledError):
            train(recipe(*keys, "data.eval=[]"), tmp_path)
    assert_same(whole, left(train(recipe(*keys, "data.eval=[]"), tmp_path)))
