"""A T5 with a vision encoder that is trained with it: where its weights come from, what learns, what is refused."""

import pickle

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from lora_cot.adapters.lora import attach, report
from lora_cot.backbones.loading import load_backbone, load_processor
from lora_cot.backbones.quantization import quantized_parts
from lora_cot.data.collate import batch, encode
from lora_cot.data.shapes import make_sample
from lora_cot.errors import AdapterError, BackboneError, RecipeError
from lora_cot.formats import FORMATS
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import LoraSection, QuantizationSection
from lora_cot.types import Sample

SEEN = [make_sample(number, "train", 0) for number in range(2)]
BLIND = [Sample(sample.id, sample.exchanges) for sample in SEEN]
LM = {"language_model": {}}


@pytest.fixture(autouse=True)
def _cache(diffusion_cache):
    """Nothing is written into the user's own."""


@pytest.fixture(scope="session")
def encoders(make_base, tmp_path_factory):
    """Folders of a tiny ViT and of a tiny CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(2)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return {"vit": make_base("t5_vision") / "vision_encoder", "clip": folder}


def loaded(base, quantization=None, **keys):
    """A base, its fusion begun as any other one's."""
    torch.manual_seed(5)
    return load_backbone(ModelSection(base=str(base), dtype="float32", **keys), quantization)


def inputs_of(backbone, samples):
    """A training batch."""
    encoder = backbone.encoder(FORMATS["two_stage"].passes[0])
    rows = [encode(encoder, sample, True) for sample in samples]
    return backbone.place(batch(rows, backbone.processor, backbone.family.image_inputs))


def logits_of(backbone, samples=SEEN):
    """Logits of the labels."""
    with torch.no_grad():
        return backbone.label_logits(inputs_of(backbone, samples))[0].float()


def same(first, second, atol=1e-5):
    """Both say the same of images, and of none."""
    for samples in (SEEN, BLIND, [SEEN[0], BLIND[1]]):
        torch.testing.assert_close(logits_of(first, samples), logits_of(second, samples), atol=atol, rtol=1e-3)


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_an_encoder_in_the_model_is_the_frozen_one_to_begin_with(plain_t5, encoders, kind):
    """The features that would have been kept, up to their rounding; it is made one checkpoint with T5 once."""
    keys = {"vision_features": kind, "vision_encoder": str(encoders[kind])}
    frozen, tuned = loaded(plain_t5(), **keys), loaded(plain_t5(), vision_training="full", **keys)
    tuned.model.encoder.fusion.load_state_dict(frozen.model.encoder.fusion.state_dict())
    assert tuned.family.name == "t5_vision_tuned" and frozen.family.name == "t5_vision"
    same(tuned, frozen, atol=1e-3)
    assert (logits_of(tuned) - logits_of(tuned, BLIND)).abs().max() > 1e-3
    again = loaded(plain_t5(), vision_training="lora", **keys)
    for name, tensor in tuned.model.encoder.vision_encoder.state_dict().items():
        assert torch.equal(again.model.encoder.vision_encoder.state_dict()[name], tensor), name


def test_a_t5_that_has_learned_to_see_keeps_its_fusion(make_base):
    """Its own encoder, now inside it; nothing is begun anew."""
    frozen = loaded(make_base("t5_vision"))
    same(loaded(make_base("t5_vision"), vision_training="full"), frozen, atol=1e-3)


@pytest.mark.parametrize("how", ["full", "lora", "frozen"])
def test_the_gradient_reaches_what_is_trained_and_nothing_else(make_base, tmp_path, how):
    """Fusion and adapters, and of the encoder what the recipe says; frozen is one that was trained before."""
    base = make_base("t5_vision")
    if how == "frozen":
        loaded(base, vision_training="full").model.save_pretrained(tmp_path)
        loaded(base, vision_training="full").processor.save_pretrained(tmp_path)
        base = tmp_path
    backbone = loaded(base, vision_training=how)
    parts = LM | ({"vision_encoder": {}} if how == "lora" else {})
    backbone = attach(backbone, LoraSection(r=2, parts=parts))
    for name, parameter in backbone.model.named_parameters():
        if "lora_B" in name:  # so that A has a gradient at once
            torch.nn.init.normal_(parameter, std=0.01)
    (line,) = (line for line in report(backbone) if line.part == "vision_encoder")
    assert (line.trained > 0) == (how != "frozen") and (line.adapted == 12) == (how == "lora")
    logits, labels = backbone.label_logits(inputs_of(backbone, SEEN))
    torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels).backward()
    for name, parameter in backbone.model.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == parameter.requires_grad, name
    assert any("fusion" in name for name, p in backbone.model.named_parameters() if p.requires_grad)


def test_a_saved_model_is_the_same_without_its_recipe(make_base, tmp_path):
    """Weights, settings and how its images are read; its processor may be sent to another process."""
    tuned = loaded(make_base("t5_vision"), vision_training="full")
    with torch.no_grad():
        tuned.model.encoder.vision_encoder.layernorm.bias += 0.5
    tuned.model.save_pretrained(tmp_path)
    pickle.loads(pickle.dumps(tuned.processor)).save_pretrained(tmp_path)
    again = loaded(tmp_path)
    assert again.family.trained_in_full(again.model) == ("projector", "vision_encoder")
    same(again, tuned)
    blind = loaded(tmp_path, vision_features="none")
    torch.testing.assert_close(logits_of(blind), logits_of(tuned, BLIND), atol=1e-5, rtol=1e-4)
    assert blind.family.trained_in_full(blind.model) == ()
    for keys, said in (
        ({"vision_features": "clip"}, "clip, but this checkpoint was trained with vit features"),
        ({"vision_encoder": "x"}, r"model\.vision_encoder · this checkpoint has its own · take it out"),
        ({"vision_features": None, "diffusion": {}}, r"model\.diffusion · this checkpoint was trained with vit features"),
    ):
        with pytest.raises(BackboneError, match=said):
            load_processor(ModelSection(base=str(tmp_path), **keys))


def test_in_four_bits_the_encoder_is_if_it_is_not_skipped(make_base):
    """With adapters on it; one that is trained in full cannot be."""
    nf4 = QuantizationSection(load_in_4bit=True, skip_parts=["lm_head"])
    backbone = loaded(make_base("t5_vision"), nf4, vision_training="lora")
    assert quantized_parts(backbone.model, backbone.family)["vision_encoder"] == 12
    attach(backbone, LoraSection(r=2, parts=LM | {"vision_encoder": {}}))
    with pytest.raises(AdapterError, match=r"vision_encoder' is quantised .*skip_parts"):
        attach(loaded(make_base("t5_vision"), nf4, vision_training="full"), LoraSection(r=2, parts=LM))
    usual = loaded(make_base("t5_vision"), QuantizationSection(load_in_4bit=True), vision_training="full")
    assert quantized_parts(usual.model, usual.family)["vision_encoder"] == 0


def test_what_cannot_be_trained_is_refused(plain_t5, make_base, make_recipe, tmp_path):
    """Before weights are read."""
    for base, keys, said in (
        (plain_t5(), {"vision_training": "full"}, r"model\.vision_features · .* none are named"),
        (make_base("llava"), {"vision_training": "full"}, r"model\.vision_training · .* take it out: it is for a T5"),
        (make_base("t5_diffusion"), {"vision_training": "full"}, r"model\.vision_training · .* no vision encoder"),
        (make_base("t5_vision"), {"vision_training": "full", "vision_features": "clip"}, "trained with vit features"),
    ):
        with pytest.raises(BackboneError, match=said):
            load_processor(ModelSection(base=str(base), **keys))
    for features in ("diffusion", "none"):
        with pytest.raises(ValueError, match="vision_training is of the encoder of vit and clip"):
            ModelSection(base="x", vision_features=features, vision_training="full")
    for how, parts in (("lora", "[language_model]"), ("full", "[language_model, vision_encoder]")):
        with pytest.raises(RecipeError, match="vision_encoder"):
            make_recipe(tmp_path, f"model.vision_training={how}", f"lora.parts={parts}")
