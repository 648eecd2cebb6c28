"""A T5 with diffusion features: what it computes, what learns, and where its weights come from."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from lora_cot.adapters.lora import attach, report
from lora_cot.backbones import diffusion
from lora_cot.backbones.latents import in_square
from lora_cot.backbones.loading import load_backbone, load_processor
from lora_cot.backbones.quantization import quantized_parts
from lora_cot.backbones.text_attention import text_attention
from lora_cot.data.collate import batch, encode
from lora_cot.data.shapes import make_sample
from lora_cot.engines.base import Ask
from lora_cot.engines.local import LocalEngine
from lora_cot.errors import BackboneError, RecipeError
from lora_cot.formats import FORMATS
from lora_cot.recipe.model import DiffusionSection, ModelSection
from lora_cot.recipe.schema import LoraSection, QuantizationSection
from lora_cot.types import Exchange, Sample

SIZES = {"image_size": 64, "patch": 4, "steps": 2}


@pytest.fixture(autouse=True)
def _cache(diffusion_cache):
    """Nothing is written into the user's own."""


@pytest.fixture
def stable(stable_diffusion):
    """Folder of a tiny Stable Diffusion."""
    return stable_diffusion


@pytest.fixture
def plain(plain_t5):
    """Folder of a plain T5 by the width of its text."""
    return plain_t5


def section(base, stable=None, dtype="float32", **keys):
    """The recipe's model section."""
    settings = DiffusionSection(**{**({} if stable is None else {"checkpoint": str(stable)}), **SIZES, **keys})
    return ModelSection(base=str(base), vision_features="diffusion", diffusion=settings, dtype=dtype)


def text_alone(number):
    """A question without an image."""
    return Sample(f"text {number}", (Exchange("What is 2 and 2?", {"RATIONALE": "Two and two."}, "4"),))


def inputs_of(backbone, samples):
    """A training batch."""
    encoder = backbone.encoder(FORMATS["two_stage"].passes[0])
    rows = [encode(encoder, sample, True) for sample in samples]
    return backbone.place(batch(rows, backbone.processor, backbone.family.image_inputs))


SEEN = [make_sample(number, "train", 0) for number in range(2)]


def logits_of(backbone, samples=SEEN):
    """Logits of the labels."""
    with torch.no_grad():
        return backbone.label_logits(inputs_of(backbone, samples))[0].float()


def losses(backbone, samples=SEEN, weight=1.0):
    """Loss of the text, and of the noise, in training."""
    inputs = {name: value for name, value in inputs_of(backbone, samples).items() if name != "stage_ids"}
    labels = inputs.pop("labels")
    model = backbone.base_model.train()
    states, further = model.decoded(labels, **inputs)
    logits = model.lm_head(states)
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels), further


def test_a_plain_t5_is_joined_with_a_checkpoint_and_keeps_all_weights(plain, stable):
    """T5's, the UNet's, and those of the VAE's encoder, under the names of today; joined once."""
    backbone = load_backbone(section(plain(), stable))
    state = backbone.model.state_dict()
    for name, tensor in T5ForConditionalGeneration.from_pretrained(plain()).state_dict().items():
        assert torch.equal(state[name], tensor), name
    for part in ("unet", "vae"):
        for name, tensor in load_file(stable / part / "diffusion_pytorch_model.safetensors").items():
            for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
                name = name.replace(f".{old}.", f".{new}.")
            if part == "unet" or name.startswith(("encoder.", "quant_conv.")):
                assert torch.equal(state[f"encoder.diffusion.{part}.{name}"], tensor), name
    torch.manual_seed(9)
    again = load_backbone(section(plain(), stable))
    assert again.model.config.image_patches == 16 and again.model.config.image_width == 64
    assert not torch.equal(again.model.encoder.fusion.gate.weight, state["encoder.fusion.gate.weight"]), "a run's own"


def test_a_saved_model_is_the_same_without_its_recipe(plain, stable, tmp_path):
    """Weights and settings; what a recipe says then takes their place, but not what its weights were made for."""
    backbone = load_backbone(section(plain(), stable, scale_factor=0.5))
    backbone.model.save_pretrained(tmp_path)
    backbone.processor.save_pretrained(tmp_path)
    again = load_backbone(ModelSection(base=str(tmp_path)))
    assert again.family.name == "t5_diffusion" and again.model.config.setting("scale_factor") == 0.5
    torch.testing.assert_close(logits_of(again), logits_of(backbone), atol=1e-5, rtol=1e-5)
    other = load_backbone(section(tmp_path, steps=0))
    assert other.model.config.setting("scale_factor") == 0.5 and other.model.config.setting("steps") == 0
    assert (logits_of(other) - logits_of(backbone)).abs().max() > 1e-4
    with pytest.raises(BackboneError, match=r"diffusion\.checkpoint · this checkpoint has its own(.|\n)*diffusion\.patch"):
        load_processor(section(tmp_path, stable, patch=2))
    with pytest.raises(BackboneError, match="vit, but this checkpoint was trained with diffusion features"):
        load_processor(ModelSection(base=str(tmp_path), vision_features="vit"))
    blind = load_backbone(ModelSection(base=str(tmp_path), vision_features="none"))
    torch.testing.assert_close(
        logits_of(blind), logits_of(backbone, [Sample(s.id, s.exchanges) for s in SEEN]), atol=1e-5, rtol=1e-5
    )


def test_a_perfect_prediction_has_no_noise_loss_and_fuses_the_exact_latents(plain, stable, monkeypatch):
    """What inference fuses without any noise."""
    backbone = load_backbone(section(plain(), stable, steps=0))
    drawn, fused = [], []
    draw = diffusion.draw
    monkeypatch.setattr(diffusion, "draw", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    monkeypatch.setattr(diffusion.Diffusion, "predict", lambda *given: drawn[-1][0])
    cut = diffusion.in_patches
    monkeypatch.setattr(diffusion, "in_patches", lambda latents, side: fused.append(latents) or cut(latents, side))
    _, further = losses(backbone)
    assert further["noise"] == 0
    backbone.model.eval()
    logits_of(backbone)
    torch.testing.assert_close(fused[0], fused[1], atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        made = backbone.model.encoder.diffusion.vae(inputs_of(backbone, SEEN)["vision_features"])
    torch.testing.assert_close(fused[1], 0.18215 * made)


def test_the_noise_loss_is_summed_over_the_rows_with_an_image(plain, stable, monkeypatch):
    """Of a UNet that predicts nothing it is the mean square of the noise; rows without an image are none of it."""
    backbone = load_backbone(section(plain(), stable))
    noise = []
    draw = diffusion.draw
    monkeypatch.setattr(diffusion, "draw", lambda *given: noise.append(draw(*given)) or noise[-1])
    monkeypatch.setattr(diffusion.Diffusion, "predict", lambda self, latents, *rest: torch.zeros_like(latents))
    mixed = inputs_of(backbone, [SEEN[0], text_alone(0), SEEN[1]])
    _, further = losses(backbone, [SEEN[0], text_alone(0), SEEN[1]])
    assert noise[0][0].shape[0] == 2 and int(backbone.family.extra_losses["noise"].items(mixed)) == 2
    torch.testing.assert_close(further["noise"], noise[0][0].square().mean((1, 2, 3)).sum())
    assert losses(backbone, [text_alone(0)])[1] is None


PARTS = {"projector": "fusion", "vae": "diffusion.vae", "unet": "diffusion.unet"}


WAYS = ("full", "lora", "frozen")
BOTH = [pytest.param(a, b, marks=[] if a == b else pytest.mark.slow) for a in WAYS for b in WAYS]


@pytest.mark.parametrize(("vae", "unet"), BOTH)
def test_the_gradient_reaches_what_is_trained_and_nothing_else(plain, stable, vae, unet):
    """By the loss of the text alone, too: the refined latents are differentiable; and T5 learns of the noise."""
    backbone = load_backbone(section(plain(128), stable, vae=vae, unet=unet))
    lora = LoraSection(r=2, parts={part: {} for part, how in (("vae", vae), ("unet", unet)) if how == "lora"} | LM)
    backbone = attach(backbone, lora)
    for name, parameter in backbone.model.named_parameters():
        if "lora_B" in name:  # so that A has a gradient at once
            torch.nn.init.normal_(parameter, std=0.01)
    trained = {line.part: line.trained for line in report(backbone)}
    assert (trained["vae"] > 0) == (vae != "frozen") and (trained["unet"] > 0) == (unet != "frozen")
    text, further = losses(backbone)
    for number, loss in enumerate((text, further["noise"])):
        backbone.model.zero_grad()
        loss.backward(retain_graph=True)
        for name, parameter in backbone.model.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.any())
            if not parameter.requires_grad:
                assert parameter.grad is None, name
            elif number == 0:
                assert reached, name
    assert any(p.grad is not None and p.grad.any() for n, p in backbone.model.named_parameters() if "encoder.block" in n)
    if vae == "frozen":
        assert inputs_of(backbone, SEEN)["vision_features"].shape == (2, 4, 16, 16)


LM = {"language_model": {}}


def test_the_noise_loss_does_not_reach_what_makes_the_latents(plain, stable):
    """It would make them all alike, whose noise is found best; the UNet, and T5 by what the UNet looks at, learn of it."""
    backbone = load_backbone(section(plain(), stable))
    losses(backbone)[1]["noise"].backward()
    grads = {name: p.grad is not None and bool(p.grad.any()) for name, p in backbone.model.named_parameters()}
    assert not any(reached for name, reached in grads.items() if "diffusion.vae" in name)
    for part in ("diffusion.unet", "encoder.block"):
        assert any(reached for name, reached in grads.items() if part in name), part


def test_noise_is_drawn_of_the_steps_that_inference_takes(plain, stable, monkeypatch):
    """None after the one where cleaning begins: of noise alone no latents can be estimated."""
    backbone = load_backbone(section(plain(), stable, first_step=7))
    drawn, draw = [], diffusion.draw
    monkeypatch.setattr(diffusion, "draw", lambda *given: drawn.append(draw(*given)[1]) or draw(*given))
    torch.manual_seed(0)
    with torch.no_grad():
        losses(backbone, SEEN * 16)
    steps = torch.cat(drawn)
    assert steps.min() == 0 and steps.max() == 7


def test_the_text_is_told_where_a_patch_lies(plain, stable):
    """The same patches in another order are another image; without an image there is nowhere to look at."""
    fusion = load_backbone(section(plain(), stable)).model.encoder.fusion
    text, patches = torch.randn(2, 3, 64), torch.randn(2, 16, 64)
    assert (fusion(text, patches) - fusion(text, patches.flip(1))).abs().max() > 1e-2
    patches[1] = 0
    torch.testing.assert_close(fusion.project(patches)[1], fusion.image_projection(patches)[1])
    assert (fusion.project(patches)[0] - fusion.image_projection(patches)[0] - fusion.positions).abs().max() < 1e-5


def test_adapters_go_to_the_attention_of_vae_and_unet(plain, stable):
    """Nowhere else in them; and not to the half that sees text where it sees none."""
    for sees, count in ((True, 8), (False, 4)):
        backbone = load_backbone(section(plain(), stable, vae="lora", unet="lora", cross_attention=sees))
        backbone = attach(backbone, LoraSection(r=2, parts={"vae": {}, "unet": {}}))
        lines = {line.part: line for line in report(backbone)}
        assert (lines["vae"].adapted, lines["unet"].adapted, lines["language_model"].adapted) == (4, 4 * count, 0)
        assert all("attention" in name for name, _ in backbone.model.named_parameters() if "lora_" in name)


def test_the_unet_sees_the_text_unless_it_is_told_not_to(plain, stable):
    """Its prediction depends on the words; with constants it does not, and they learn."""
    for sees in (True, False):
        backbone = load_backbone(section(plain(128), stable, cross_attention=sees))
        encoder = backbone.model.encoder
        latents, steps = torch.randn(1, 4, 16, 16), torch.tensor([100])
        texts = [torch.randn(1, 5, 128) for _ in range(2)]
        made = [encoder.diffusion.predict(latents, steps, *encoder.fusion.context(text, None)) for text in texts]
        assert torch.equal(*made) == (not sees)
    losses(backbone)[1]["noise"].backward()
    assert encoder.fusion.constants.grad.any() and all(
        parameter.grad is not None and parameter.grad.any() for parameter in encoder.diffusion.unet.parameters()
    )


def test_zero_latents_leave_the_text_path_finite(plain, stable):
    """No UNet is run for them, and the loss and its gradients are numbers."""
    backbone = load_backbone(section(plain(), stable))
    loss, further = losses(backbone, [text_alone(0), text_alone(1)])
    loss.backward()
    grads = [p.grad for p in backbone.model.parameters() if p.grad is not None]
    assert further is None and loss.isfinite() and grads and all(grad.isfinite().all() for grad in grads)
    assert all(parameter.grad is None for parameter in backbone.model.encoder.diffusion.parameters())


@pytest.mark.parametrize("blank", ["zeros", pytest.param("white", marks=pytest.mark.slow)])
def test_a_row_is_the_same_alone_and_beside_others(plain, stable, blank):
    """With and without an image, in a batch with longer texts."""
    backbone = load_backbone(section(plain(), stable, blank=blank))
    rows = [SEEN[0], text_alone(0), SEEN[1], text_alone(1)]
    together = logits_of(backbone, rows)
    for row, sample in zip(together, rows, strict=True):
        (alone,) = logits_of(backbone, [sample])
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=1e-4)


def test_a_white_image_is_another_thing_than_zeros(plain, stable):
    """For a text without an image; it has no noise loss either way."""
    found = []
    for blank in ("zeros", "white"):
        torch.manual_seed(0)
        backbone = load_backbone(section(plain(), stable, blank=blank))
        found.append(logits_of(backbone, [text_alone(0)]))
        further = losses(backbone, [text_alone(0)])[1]
        assert further is None or further["noise"] == 0
        assert not backbone.family.sees(inputs_of(backbone, [text_alone(0)]))
    assert (found[0] - found[1]).abs().max() > 1e-5


def test_an_image_is_known_by_its_bytes_and_given_from_minus_one_to_one(plain, stable):
    """The noise of inference follows from them; a whole picture is brought to a square, its first row on top."""
    processor = load_processor(section(plain(), stable))[1]
    first, second, again = (processor.look(sample.images[0], 10**6) for sample in (*SEEN, SEEN[0]))
    assert first["image_seed"] == again["image_seed"] != second["image_seed"]
    picture = Image.new("RGB", (128, 64), "white")
    picture.paste("black", (0, 32, 128, 64))
    made = in_square(picture, 64)
    assert made.shape == (3, 64, 64) and (made[:, :24] == 1).all() and (made[:, 40:] == -1).all()


def test_inference_draws_nothing_and_training_does(plain, stable):
    """Two forwards in eval mode are equal to the last bit, and leave torch's random numbers alone."""
    backbone = load_backbone(section(plain(), stable))
    torch.manual_seed(0)
    first, state = logits_of(backbone), torch.get_rng_state()
    assert torch.equal(logits_of(backbone), first) and torch.equal(torch.get_rng_state(), state)
    assert losses(backbone)[0] != losses(backbone)[0]


def test_the_unet_is_run_once_a_prompt(plain, stable, monkeypatch):
    """Not again for each token or candidate."""
    backbone = load_backbone(section(plain(), stable, steps=3))
    runs, predict = [], diffusion.Diffusion.predict
    monkeypatch.setattr(diffusion.Diffusion, "predict", lambda self, *given: runs.append(1) or predict(self, *given))
    engine = LocalEngine(backbone, FORMATS["direct"])
    (state,) = engine.start([make_sample(0, "test", 0)])
    assert len(engine.extend([Ask(state, ["a", "b"], 6)])[0]) == 2 and len(runs) == 3


def test_an_answer_does_not_depend_on_who_shares_its_batch(plain, stable):
    """The noise of inference follows from the image; what a prompt leaves behind is the same."""
    engine = LocalEngine(load_backbone(section(plain(), stable)), FORMATS["direct"])
    samples = [make_sample(number, "test", 0) for number in range(3)]
    together = [state.root.kv.still for state in engine.start(samples)]
    (alone,) = engine.start(samples[1:2])
    torch.testing.assert_close(alone.root.kv.still, together[1], atol=1e-5, rtol=1e-4)


def test_latents_of_a_frozen_vae_are_kept_and_are_those_of_the_model(plain, stable, monkeypatch):
    """The model fed with what was kept says what it says of pixels; the second time no VAE is loaded."""
    frozen = load_backbone(section(plain(), stable, vae="frozen"))
    frozen.prepare(SEEN, 10**6)
    torch.manual_seed(0)
    kept = inputs_of(frozen, SEEN)["vision_features"]
    with torch.no_grad():
        made = frozen.model.encoder.diffusion.vae(inputs_of(load_backbone(section(plain(), stable)), SEEN)["vision_features"])
    torch.testing.assert_close(kept, made, atol=2e-3, rtol=2e-3)
    monkeypatch.setattr("lora_cot.backbones.latents.LoadedVae", None)
    again = load_backbone(section(plain(), stable, vae="frozen", scale_factor=0.3))
    assert torch.equal(inputs_of(again, SEEN)["vision_features"], kept), "of another scale factor too"


def test_in_four_bits_the_unet_is_if_it_is_not_skipped(plain, stable):
    """Its linear layers; adapters on them learn. One that is trained in full cannot be."""
    nf4 = QuantizationSection(load_in_4bit=True, skip_parts=["vae", "lm_head"])
    backbone = load_backbone(section(plain(), stable, unet="lora", vae="frozen"), nf4)
    counts = quantized_parts(backbone.model, backbone.family)
    assert counts["unet"] > 16 and counts["vae"] == counts["projector"] == 0
    backbone = attach(backbone, LoraSection(r=2, parts={"unet": {}, "language_model": {}}))
    losses(backbone)[0].backward()
    assert all(p.grad.any() for name, p in backbone.model.named_parameters() if "lora_B" in name)
    usual = load_backbone(section(plain(), stable), QuantizationSection(load_in_4bit=True))
    assert quantized_parts(usual.model, usual.family)["unet"] == 0


def test_gradient_checkpointing_reaches_the_unet_and_changes_nothing(plain, stable, monkeypatch):
    """The same gradients; its blocks are computed again in the backward."""
    monkeypatch.setattr(diffusion, "draw", lambda latents, steps: (torch.ones_like(latents), torch.full((len(latents),), 90)))
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        backbone = load_backbone(section(plain(), stable))
        if checkpointed:
            backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
        runs = []
        resnet = backbone.model.encoder.diffusion.unet.down_blocks[0].resnets[0]
        resnet.register_forward_pre_hook(lambda *given, runs=runs: runs.append(1))
        text, further = losses(backbone)
        (text + further["noise"]).backward()
        assert len(runs) == 1 + checkpointed
        found.append({name: p.grad for name, p in backbone.model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, atol=1e-5, rtol=1e-3)


def test_what_does_not_fit_is_refused(plain, stable, tmp_path):
    """Before weights are read, each with its remedy."""
    for keys, said in (
        ({"image_size": 60}, "60 pixels cannot be cut .* take a multiple of 16"),
        ({"first_step": 1000}, "the schedule has 1000 steps · set it to 999 or less"),
    ):
        with pytest.raises(BackboneError, match=said):
            load_processor(section(plain(), stable, **keys))
    odd = tmp_path / "odd"
    shutil.copytree(stable, odd)
    config = json.loads((odd / "unet" / "config.json").read_text())
    (odd / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 9}))
    with pytest.raises(BackboneError, match="takes other latents than its VAE makes"):
        load_processor(section(plain(), odd))
    shutil.rmtree(odd / "vae")
    with pytest.raises(BackboneError, match=r"the folder holds no vae/config\.json"):
        load_processor(section(plain(), odd))
    for keys in ({"vision_features": "vit", "diffusion": {}}, {"vision_features": "diffusion", "vision_encoder": "x"}):
        with pytest.raises(ValueError, match=r"take one of them out|name diffusion\.checkpoint"):
            ModelSection(base="x", **keys)


def test_stable_diffusion_1_4_is_known_without_the_hub(plain):
    """As a plan needs it: 860 million parameters in its UNet."""
    _, processor = load_processor(ModelSection(base=str(plain()), vision_features="diffusion"))
    assert processor.features.shape == (3, 256, 256)
    from lora_cot.backbones.joined_diffusion import KNOWN

    with torch.device("meta"):
        made = diffusion.Diffusion(KNOWN["vae"], KNOWN["unet"])
    assert sum(p.numel() for p in made.unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in made.vae.parameters()) == 34_163_664


def test_settings_that_would_be_ignored_are_refused(make_base, plain):
    """Of a base without diffusion features, and of other features on one that has them."""
    for base, keys, said in (
        (make_base("t5_vision"), {"diffusion": {"steps": 2}}, r"model\.diffusion · this checkpoint was trained with vit"),
        (plain(), {"diffusion": {"steps": 2}}, r"model\.vision_features · .* set it to vit, clip or diffusion"),
        (make_base("t5_diffusion"), {"vision_encoder": "x"}, r"model\.vision_encoder · .* no vision encoder · take it out"),
        (make_base("llava"), {"diffusion": {"steps": 2}}, r"model\.diffusion · .* take it out: it is for a T5"),
    ):
        with pytest.raises(BackboneError, match=said):
            load_processor(ModelSection(base=str(base), **keys))


def test_kept_latents_are_of_one_vae_and_one_size(plain, stable, tmp_path):
    """Other weights or larger images have another name; another scale factor or patch has not."""
    other = tmp_path / "other"
    shutil.copytree(stable, other)
    path = other / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["quant_conv.bias"] += 1
    save_file(tensors, path, {"format": "pt"})
    keys, same = [], {"scale_factor": 2.0, "patch": 2}
    for checkpoint, own in ((stable, {}), (stable, same), (stable, {"image_size": 128}), (other, {})):
        features = load_backbone(section(plain(), checkpoint, vae="frozen", **own)).processor.features
        keys.append(features._encoder.key())
    assert keys[0] == keys[1] and len(set(keys)) == 3


@pytest.mark.parametrize(("parts", "how"), [("[language_model]", "lora"), ("[language_model, unet]", "frozen")])
def test_parts_that_get_adapters_are_named_twice_alike(make_recipe, tmp_path, parts, how):
    """Where adapters go, and what becomes of VAE and UNet."""
    with pytest.raises(RecipeError, match="unet"):
        make_recipe(tmp_path, f"lora.parts={parts}", f"model.diffusion.unet={how}")


def test_the_words_that_latents_looked_at_can_be_seen(plain, stable):
    """A map of the latents for each token; padding gets nothing, and nothing is left behind on the model."""
    backbone = load_backbone(section(plain(128), stable))
    first = SEEN[0]
    longer = Sample(
        "longer", (Exchange(first.last.question + " Say why.", first.last.stages, first.last.answer),), first.images
    )
    inputs = inputs_of(backbone, [first, longer])
    before = logits_of(backbone)
    made = text_attention(backbone, inputs)
    length = int(inputs["attention_mask"][0].sum())
    assert made.shape == (2, inputs["input_ids"].shape[1], 16, 16) and length < made.shape[1]
    torch.testing.assert_close(made.sum(1), torch.ones(2, 16, 16), atol=1e-4, rtol=1e-4)
    assert made[0, length:].max() < 1e-4 and torch.equal(logits_of(backbone), before)
    torch.testing.assert_close(
        text_attention(backbone, inputs_of(backbone, [first]))[0], made[0, :length], atol=1e-5, rtol=1e-3
    )
    blind = load_backbone(section(plain(128), stable, cross_attention=False))
    with pytest.raises(BackboneError, match="looks at no text here"):
        text_attention(blind, inputs_of(blind, SEEN))


def test_t5_can_be_trained_in_full(plain, stable):
    """By PEFT's own key: every layer of it learns, beside a UNet with adapters."""
    backbone = load_backbone(section(plain(), stable, unet="lora", vae="frozen"))
    layers = ["SelfAttention", "EncDecAttention", "DenseReluDense"]
    backbone = attach(backbone, LoraSection(r=2, parts={"unet": {}}, modules_to_save=layers))
    losses(backbone)[0].backward()
    trained = {name: p for name, p in backbone.model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    assert sum("block" in name for name in trained) == 2 * (4 + 2) + 2 * (8 + 2) + 2
