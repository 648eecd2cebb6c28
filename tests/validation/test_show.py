"""Samples are shown as they are trained on."""

import json
import re
from dataclasses import replace

import pytest

from lora_cot.data.collate import encode
from lora_cot.data.labels import IGNORE_INDEX
from lora_cot.data.shapes import make_sample
from lora_cot.errors import DataError, RunError
from lora_cot.formats import FORMATS
from lora_cot.validation.show import show_samples, spans, write_page
from tests.validation.conftest import plain


def test_spans_are_the_tokens(each_chat):
    """Trained and other text in order; the slots of each image are one word with their number."""
    encoder = each_chat.encoder(FORMATS["four_stage"])
    sample = make_sample(0, "train", 0)
    two = replace(sample, images=sample.images * 2, exchanges=(replace(sample.last, question=f"{encoder.image_token}?"),))
    for one in (sample, two):
        encoded = encode(encoder, one, True)
        found = spans(encoded, encoder)
        assert [span.trained for span in found] == [False, True]
        trained = [label for label in encoded.labels if label != IGNORE_INDEX]
        assert found[1].text == encoder.tokenizer.decode(trained, clean_up_tokenization_spaces=False)
        counts = [int(count) for count in re.findall(re.escape(encoder.image_token) + "×(\\d+)", found[0].text)]
        assert sum(counts) == encoded.input_ids.count(encoder.image_token_id)
        assert found[0].text.count(encoder.image_token) == len(counts) + (one is two), "quoted, it stays as it is"


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (3, [0, 3, 6]), (10, range(10)), (99, range(10))])
def test_samples_are_evenly_spread(source, recipe_of, count, expected):
    """The first, and as many others; never more than there are."""
    recipe = recipe_of(source(*[plain(number) for number in range(10)]))
    assert [sample.id for sample in show_samples(recipe, count)] == [f"q{number}" for number in expected]


@pytest.fixture
def recipe(source, recipe_of):
    """A row with two pictures and hostile text, one that is too long, one whose picture is missing."""
    rows = [
        plain(0, images=["0.png", "1.png"], question="</pre><script>alert(1)</script> \x1b[31m"),
        plain(1, question="why " * 400),
        plain(2, image="none.png"),
    ]
    return recipe_of(source(*rows), overrides=["training.max_length=400"])


def test_what_is_shown(recipe):
    """Images with size and tokens, lengths, and why a sample would not be trained on or cannot be shown."""
    good, long, broken = show_samples(recipe, 3)
    assert [str(image) for image in good.images] == ["60×40 pixels → 4 tokens"] * 2
    assert "more than training.max_length=400" in long.passes[0].problem
    assert (broken.id, broken.passes) == ("q2", ()) and broken.problem.startswith("none.png · no such image file")
    text = "\n".join(line for sample in (good, long, broken) for line in sample.lines())
    assert "\x1b" not in text and text.count("⟦<SUMMARY>") == 2 and "cannot be shown: none.png" in text
    told = json.loads(json.dumps(good.to_json()))
    assert told["images"] == [{"width": 60, "height": 40, "tokens": 4}] * 2
    assert told["passes"][0]["trained"] < told["passes"][0]["tokens"]


def test_a_shrunk_image_is_shown_with_what_it_costs(source, recipe_of, make_base):
    """Where long samples are made to fit, the size and tokens are those of training."""
    overrides = [f"model.base={make_base('qwen2_vl')}", "training.long_samples=shrink_image"]
    (whole,) = show_samples(recipe_of(source(plain(0, image="0.png")), overrides=overrides), 1)
    limit = whole.passes[0].tokens - 1
    (less,) = show_samples(
        recipe_of(source(plain(0, image="0.png")), overrides=[*overrides, f"training.max_length={limit}"]), 1
    )
    assert less.images[0].tokens < whole.images[0].tokens and less.passes[0].tokens <= limit
    assert "made smaller from 60×40" in str(less.images[0]) and not less.passes[0].problem


def test_the_page_opens_offline(recipe, folder):
    """Thumbnails are inside, nothing is loaded, and text of rows is only text."""
    write_page(show_samples(recipe, 3), recipe, folder / "page.html")
    page = (folder / "page.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 2 and page.count("60×40 pixels → 4 tokens") == 2
    assert "<script" not in page and "&lt;script&gt;" in page and "http" not in page
    assert page.count("<mark>&lt;SUMMARY&gt;") == 2 and "Cannot be shown: none.png" in page
    with pytest.raises(RunError, match="cannot be written"):
        write_page([], recipe, folder / "deep")


def test_nothing_to_show(recipe_of):
    """A recipe without rows says so."""
    with pytest.raises(DataError, match=r"data\.train · there is nothing to show"):
        show_samples(recipe_of(), 1)
