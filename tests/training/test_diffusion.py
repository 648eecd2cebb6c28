"""Runs of a T5 with diffusion features: trained, merged, opened, stopped and gone on with as any other."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lora_cot.backbones import diffusion
from lora_cot.checkpoints.opening import open_model
from lora_cot.data.collate import batch, encode
from lora_cot.data.shapes import make_sample
from lora_cot.evaluation.ask import ask
from lora_cot.merging.merge import merge
from lora_cot.training.run import train
from lora_cot.training.trainer import CotTrainer
from tests.training.drawn import draw
from tests.training.test_resume import KilledError, assert_same, left, stop_after

SEARCH = {"stages": {"RATIONALE": {"max_new_tokens": 6}, "ANSWER": {"max_new_tokens": 4}}}
LORA = ("model.diffusion.unet=lora", "model.diffusion.vae=frozen", "lora.parts=[language_model, unet]")


@pytest.fixture
def recipe(make_recipe, plain_t5, stable_diffusion, diffusion_cache, tmp_path):
    """A recipe on a plain T5 and a tiny Stable Diffusion, in one pass unless it is said otherwise."""
    settings = {"checkpoint": str(stable_diffusion), "image_size": 64, "patch": 4, "steps": 2}
    model = {"base": str(plain_t5()), "dtype": "float32", "vision_features": "diffusion", "diffusion": settings}
    keys = ("format.name=answer_only", "quantization=null", "training.max_steps=3", "training.learning_rate=1e-2")
    keys += ("data.eval.0.limit=2", "training.eval_generations=1")
    return lambda *more, **sections: make_recipe(tmp_path, *keys, *more, **{"model": model, "search": {}, **sections})


def logits_of(opened, one):
    """Of a sample's labels."""
    encoder = opened.backbone.encoder(one)
    rows = [encode(encoder, make_sample(number, "test", 0), True) for number in range(2)]
    backbone = opened.backbone.for_pass(one.name) if one.given is not None else opened.backbone
    backbone.use_adapter()
    with torch.no_grad():
        return backbone.label_logits(batch(rows, backbone.processor, backbone.family.image_inputs))[0].float()


def rows_of(folder):
    """The log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


CHOICES = {"full": (), "lora": LORA, "nf4": (*LORA, "quantization={load_in_4bit: true, skip_parts: [vae, lm_head]}")}


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_logs_its_noise_loss_and_its_merged_model_is_the_adapters(recipe, tmp_path, choice):
    """What is trained in full travels with the adapter; the merged folder opens without the recipe, settings and all."""
    run = train(recipe(*CHOICES[choice], "model.diffusion.scale_factor=0.4"), tmp_path)
    noise = [row["loss/noise"] for row in rows_of(run) if "loss/noise" in row]
    assert "noise ends at" in (run / "report.html").read_text()
    assert len(noise) == 3 and all(0.5 < value < 2 for value in noise)
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    assert any("diffusion.unet" in name for name in adapter)
    assert any("diffusion.vae" in name for name in adapter) == (choice == "full")
    tuned = open_model(str(run), "none")
    (report,) = merge(run, onto="full").reports
    assert report.adapter_vs_merged.top1_agreement >= (0.95 if choice == "nf4" else 1)
    (run / "merged" / "recipe.yaml").unlink()
    merged = open_model(str(run / "merged"))
    assert merged.backbone.base_model.config.setting("scale_factor") == 0.4
    (one,) = tuned.recipe.format.build().passes
    torch.testing.assert_close(logits_of(merged, one), logits_of(tuned, one), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_two_stages_from_a_recipe_to_an_answer(recipe, tmp_path):
    """A rationale and an answer, each with an adapter of its own; run and merged model answer alike."""
    run = train(recipe("format.name=two_stage", "training.hand_on=predicted", *LORA, search=SEARCH), tmp_path)
    merge(run, onto="full")
    image = tmp_path / "scene.png"
    image.write_bytes(make_sample(0, "test", 0).images[0])
    said = [ask(open_model(str(model)), image, "How many shapes are there?").text for model in (run, run / "merged")]
    assert said[0] == said[1] and said[0]
    page = (run / "report.html").read_text()
    assert "Words that the latents looked at" in page and 'alt="Where the latents looked at' in page


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(recipe, tmp_path, monkeypatch):
    """Steps of the schedule and noise are drawn again as they were."""
    keys = (*LORA, "training.save_strategy=steps", "training.save_steps=1", "training.max_steps=3", "data.eval=[]")
    whole = left(train(recipe(*keys), tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KilledError):
            train(recipe(*keys), tmp_path)
    assert_same(whole, left(train(recipe(*keys), tmp_path)))


@pytest.mark.slow
def test_accumulation_changes_nothing_of_the_noise_loss(recipe, tmp_path, monkeypatch):
    """Its mean is over all images of a step, however they are shared out; noise that follows from the image here."""
    monkeypatch.setattr(diffusion, "draw", draw)
    found = []
    for size in (4, 1):
        keys = (f"training.per_device_train_batch_size={size}", f"training.gradient_accumulation_steps={4 // size}")
        run = train(
            recipe(*LORA, *keys, "training.optim=sgd", "training.max_steps=2", "data.eval=[]", f"name=of-{size}"), tmp_path
        )
        found.append((load_file(run / "adapter" / "adapter_model.safetensors"), rows_of(run)))
    for name, tensor in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], tensor, atol=1e-5, rtol=1e-3)
    for one, other in zip(*(rows for _, rows in found), strict=True):
        for key in ("loss", "loss/noise"):
            assert one.get(key, 0) == pytest.approx(other.get(key, 0), rel=1e-3)


@pytest.mark.slow
def test_a_weight_of_nothing_leaves_the_loss_of_the_text_alone(recipe, tmp_path, monkeypatch):
    """And of two, it is that much more."""
    losses, compute = {}, CotTrainer.compute_loss
    for weight in (0, 2):
        taken = losses.setdefault(weight, [])

        def look(self, *given, taken=taken, **more):
            loss = compute(self, *given, **more)
            taken.append(float(loss.detach()))
            return loss

        monkeypatch.setattr(CotTrainer, "compute_loss", look)
        monkeypatch.setattr(diffusion, "draw", lambda latents, _: (torch.ones_like(latents), torch.full((len(latents),), 9)))
        monkeypatch.setattr(diffusion.Diffusion, "predict", lambda self, latents, *_: latents.float() * 0 + 3)
        keys = (f"model.diffusion.noise_weight={weight}", "training.max_steps=1", "data.eval=[]", f"name=of-{weight}")
        keys += ("training.per_device_train_batch_size=3",)
        train(recipe("model.diffusion.unet=frozen", "model.diffusion.vae=frozen", *keys), tmp_path)
    assert losses[2][0] == pytest.approx(losses[0][0] + 2 * (3 - 1) ** 2, abs=1e-3)
