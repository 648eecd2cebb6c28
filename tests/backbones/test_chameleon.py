"""Chameleon: what an image is in its prompts, what it never writes, and that it is asked but not trained."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from lora_cot import validate
from lora_cot.backbones.loading import load_backbone
from lora_cot.backbones.quantization import is_quantized, quantized_parts
from lora_cot.checkpoints.opening import NF4
from lora_cot.data.collate import encode
from lora_cot.engines.base import Ask, Sampling
from lora_cot.engines.local import LocalEngine
from lora_cot.engines.memory import Memory
from lora_cot.engines.patches import attend, insert
from lora_cot.errors import BackboneError
from lora_cot.formats import FORMATS
from lora_cot.planning.plan import plan
from lora_cot.recipe.model import ModelSection
from lora_cot.training.run import train
from tests.engines.reference import SAMPLES, TEXT_ONLY, spy


@pytest.fixture
def chameleon(load_tiny):
    """A tiny Chameleon, loaded."""
    return load_tiny("chameleon")


@pytest.fixture
def engine(chameleon):
    """An engine that keeps what its images' patches are."""
    found = LocalEngine(chameleon, FORMATS["direct"])
    found._decoder.keeps_sight = True
    return found


def test_a_prompt_is_image_question_separator(chameleon):
    """As the released code writes it: the image between its marks, and nothing after the separator."""
    encoded = encode(chameleon.encoder(FORMATS["direct"]), SAMPLES[0], False)
    text = chameleon.processor.tokenizer.decode(encoded.input_ids)
    image = "<racm3:break>" + "<image>" * 4 + "<eoss>"
    question = FORMATS["direct"].question(SAMPLES[0].last, SAMPLES[0].choices)
    assert text == f"<s>{image}{question}<reserved08706>"
    assert [len(slots) for slots in encoded.image_slots] == [6]


def test_an_answer_ends_with_the_end_token(chameleon):
    """What was answered before stands in the prompt as the model would have written it."""
    found = chameleon.encoder(FORMATS["direct"]).answer_ids("yes")
    assert found[-1] == chameleon.processor.tokenizer.eos_token_id and len(found) > 1


def test_a_template_of_its_own_is_kept(make_base, tmp_path):
    """A checkpoint that knows better is asked in its own way; the image's marks are there all the same."""
    folder = shutil.copytree(make_base("chameleon"), tmp_path / "own")
    template = "Q{% for part in messages[0]['content'] %}{{ part['text'] or '<image>' }}{% endfor %}A"
    (folder / "chat_template.jinja").write_text(template)
    loaded = load_backbone(ModelSection(base=str(folder)))
    encoded = encode(loaded.encoder(FORMATS["direct"]), SAMPLES[0], False)
    tokens = loaded.processor.tokenizer.convert_ids_to_tokens(encoded.input_ids)
    assert tokens[:7] == ["Q", "<racm3:break>", *["<image>"] * 4, "<eoss>"] and tokens[-1] == "A"


def test_half_an_image_is_no_image(chameleon):
    """A beginning that ends between an image's marks is not one that holds the image."""
    encoded = encode(chameleon.encoder(FORMATS["direct"]), SAMPLES[0], False)
    assert [Memory.has_images(encoded, length) for length in range(9)] == [False] * 7 + [True] * 2


@torch.inference_mode()
def test_what_was_seen_are_image_tokens(engine):
    """The patches' features are the embeddings of the tokens that the VQ-VAE makes of the images, by rows."""
    backbone, both = engine.backbone, replace(SAMPLES[0], id="both", images=(*SAMPLES[0].images, *SAMPLES[1].images))
    samples = [*SAMPLES, both]
    for state, sample in zip(engine.start(samples), samples, strict=True):
        encoded = encode(engine.encoder, sample, False)
        tokens = backbone.base_model.get_image_tokens(encoded.image_inputs["pixel_values"]).flatten()
        expected = backbone.base_model.get_input_embeddings()(tokens)
        assert len(set(tokens.tolist())) > 1, "all the same is no test"
        torch.testing.assert_close(state.root.sight.features, expected, atol=0, rtol=0)
        assert state.root.sight.grids == ((2, 2),) * len(sample.images)


@torch.inference_mode()
def test_no_image_token_is_ever_drawn(engine, monkeypatch):
    """From a prompt with an image, from text alone and after patches, at any temperature."""
    steps, images = spy(monkeypatch), engine.backbone.base_model.model.vocabulary_mapping.image_tokens
    states = engine.start([SAMPLES[0], TEXT_ONLY])
    with engine.running():
        roots, _ = attend(engine._decoder, states[:1])
        states += insert(engine._decoder, roots, [[1, 2]])
    engine.extend([Ask(state, [seed], 8, sampling=Sampling(100.0)) for state in states for seed in ("a", "b")])
    assert len(images) == 64 and steps
    for logits in steps:
        assert (logits[:, images] == torch.finfo(logits.dtype).min).all()


@torch.inference_mode()
def test_four_bits_leave_the_images_alone(make_base, chameleon):
    """The transformer's layers are quantised, head and VQ-VAE are not: the same image is the same tokens."""
    loaded = load_backbone(ModelSection(base=str(make_base("chameleon"))), NF4)
    assert quantized_parts(loaded.model, loaded.family) == {"vision_encoder": 0, "language_model": 14, "lm_head": 0}
    assert not any(map(is_quantized, loaded.part("vision_encoder").modules()))
    pixels = encode(loaded.encoder(FORMATS["direct"]), SAMPLES[0], False).image_inputs["pixel_values"]
    assert torch.equal(*(one.base_model.get_image_tokens(pixels) for one in (loaded, chameleon)))
    engine = LocalEngine(loaded, FORMATS["direct"])
    ((candidate,),) = engine.extend([Ask(engine.start(SAMPLES[:1])[0], ["a"], 4)])
    assert candidate.tokens


REFUSED = (
    r"model\.base .* · chameleon is here for inference only: it can be asked, searched, evaluated and served, not trained · "
    r"allowed: llava, .*mllama, qwen2_vl, qwen2_5_vl, t5, t5_vision, t5_vision_tuned, t5_diffusion$"
)


def test_training_is_refused_before_weights_are_read(make_base, make_recipe, tmp_path):
    """By training, planning and validation alike, with what can be trained; no run is left that looks begun."""
    folder = shutil.copytree(make_base("chameleon"), tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    recipe = make_recipe(tmp_path, f"model.base={folder}")
    for refuse in (lambda: train(recipe, tmp_path), lambda: plan(recipe)):
        with pytest.raises(BackboneError, match=REFUSED):
            refuse()
    (problem,) = validate(recipe).problems
    assert "inference only" in str(problem)
    assert not (tmp_path / "tiny" / "adapter").exists()


def test_the_published_shape_is_that_of_its_processor(chameleon, make_base, tmp_path):
    """An image of 512 pixels is 32 by 32 tokens between two marks, whatever its own size."""
    folder = shutil.copytree(make_base("chameleon"), tmp_path / "published", ignore=shutil.ignore_patterns("*.safetensors"))
    known = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps(known | {"image_seq_length": 1024}))
    family = chameleon.family
    processor = family.load_processor(str(folder), ModelSection(base=str(folder)))
    assert family.image_tokens(processor, [(640, 480), (9, 7)]) == [1026, 1026]
    encoded = encode(family.encoder(processor, FORMATS["direct"]), SAMPLES[0], False)
    view = family.patch_view(chameleon.base_model)
    assert view.grids(processor, encoded) == [(32, 32)] and encoded.slots == 1026
    assert processor.tokenizer.convert_ids_to_tokens([*view.marks(processor)[0], view.marks(processor)[1]]) == [
        "<racm3:break>",
        "<eoss>",
    ]
