"""Pictures of the words that an image's latents looked at."""

import base64
import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from lora_cot.backbones.loading import load_backbone
from lora_cot.data.shapes import make_sample
from lora_cot.formats import FORMATS
from lora_cot.recipe.model import DiffusionSection, ModelSection
from lora_cot.training import attended
from lora_cot.training.attended import DRAWN, attended_words

SAMPLE, FORMAT = make_sample(0, "test", 0), FORMATS["two_stage"]


@pytest.fixture
def make(plain_t5, stable_diffusion, diffusion_cache):
    """A T5 whose latents are refined, by its settings."""

    def made(**keys):
        settings = DiffusionSection(checkpoint=str(stable_diffusion), image_size=64, patch=4, **{"steps": 1, **keys})
        return load_backbone(
            ModelSection(base=str(plain_t5(128)), vision_features="diffusion", diffusion=settings, dtype="float32")
        )

    return made


def test_every_word_of_the_question_is_told_with_its_share(make):
    """All of the attention is given to some word, in the order of the text."""
    words = attended_words(make(), FORMAT, SAMPLE, 10**6)
    text = " ".join(word.text for word in words)
    assert SAMPLE.last.question in text.replace(" ?", "?") and sum(word.share for word in words) == pytest.approx(1, abs=1e-3)
    drawn = [word for word in words if word.picture]
    least = min(word.share for word in drawn)
    assert (
        len(drawn) == DRAWN
        and words[-1].text == "</s>"
        and not words[-1].picture
        and all(word.text in word.said for word in drawn)
    )
    assert not [word for word in words if word.share > least and not word.picture and word.text.isalnum()]


def test_a_picture_is_bright_where_its_word_was_looked_at(make, monkeypatch):
    """Right side up, on the image that was asked about, and told in words."""
    backbone, seen = make(), []

    def all_at_one_place(_, inputs):
        maps = torch.full((1, inputs["input_ids"].shape[1], 16, 16), 0.01)
        seen.extend(backbone.processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]))
        maps[0, seen.index("▁shapes") if "▁shapes" in seen else 2, 3, 12] = 0.9
        return maps

    monkeypatch.setattr(attended, "text_attention", all_at_one_place)
    white = io.BytesIO()
    Image.new("RGB", (64, 32), "white").save(white, "PNG")
    words = attended_words(backbone, FORMAT, replace(SAMPLE, images=(white.getvalue(),)), 10**6)
    most = max(words, key=lambda word: word.share)
    assert "row 4 of 16, column 13 of 16" in most.said and "90" in most.said
    picture = Image.open(io.BytesIO(base64.b64decode(most.picture.partition(",")[2]))).convert("L").resize((64, 32))
    bright, dark = picture.getpixel((50, 7)), picture.getpixel((10, 28))
    assert bright > 150 and dark < 80


@pytest.mark.parametrize("keys", [{"steps": 0}, {"cross_attention": False}])
def test_latents_that_look_at_no_text_have_no_pictures(make, keys):
    """Nor have questions without an image."""
    assert attended_words(make(**keys), FORMAT, SAMPLE, 10**6) == []
    assert attended_words(make(), FORMAT, replace(SAMPLE, images=()), 10**6) == []
