"""The remote engine on the real vLLM: what it says of itself, and the same prompts, continuations and odds as here."""

import math

import pytest
import torch

from lora_cot.backbones.loading import load_backbone
from lora_cot.data.collate import batch, encode, model_inputs
from lora_cot.data.sources import load_data
from lora_cot.engines.base import Ask, Sampling
from lora_cot.engines.remote import RemoteEngine
from lora_cot.formats import FORMATS
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import DataSection
from tests.merging.conftest import PUBLISHED, rewrite
from tests.vllm.test_merged import SERVE, served, split_processor

TOKENS = 16
DIRECT = FORMATS["direct"]
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(SERVE is None, reason="VLLM_SERVE names no program that serves a model")]


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def both(request, make_base, tmp_path_factory):
    """A random model here and in vLLM, and samples with images."""
    folder = tmp_path_factory.mktemp("vllm")
    base = rewrite(make_base(request.param), folder / "base", PUBLISHED[request.param])
    if request.param == "qwen2_vl":
        split_processor(base)
    data = DataSection.model_validate({"train": [{"source": "shapes", "split": "test", "limit": 4}]})
    samples, _ = load_data(data, DIRECT)
    with served(base, folder / "vllm.log") as address:
        engine = RemoteEngine.open(address, DIRECT)
        yield engine, load_backbone(ModelSection(base=str(base))), samples
        engine.close()


def test_it_does_all_that_is_asked(both):
    """Nothing is missing."""
    wanted = "continues a text, stops at strings · n · log-probabilities, 20 a place · images"
    assert str(both[0].link.capabilities) == wanted


def test_prompts_are_the_same(both):
    """As many tokens as here, those of the image too."""
    engine, backbone, samples = both
    for sample, state in zip(samples, engine.start(samples), strict=True):
        answer = engine._ask(state, {"max_tokens": 1, "temperature": 0.0})
        assert answer.prompt_tokens == len(encode(backbone.encoder(DIRECT), sample, False, engine.max_pixels).input_ids)


def test_candidates_stop(both):
    """Three of each, at the string, which stays; the same again for the same seeds."""
    engine, _, samples = both
    asks = [Ask(state, ["a", "b", "c"], 200, ("e",), sampling=Sampling(1.0)) for state in engine.start(samples)]
    found, again = engine.extend(asks), engine.extend(asks)
    ended = [candidate for candidates in found for candidate in candidates]
    assert len(ended) == 3 * len(samples) and {c.ended for c in ended} <= {"stop", "end", "length"}
    stopped = [c for c in ended if c.ended == "stop"]
    assert len(stopped) > len(ended) / 2 and all(c.text.endswith("e") and c.text.count("e") == 1 for c in stopped)
    assert all(c.logprob < 0 < c.tokens for c in ended)
    assert all(len({c.text for c in row}) > 1 for row in found)
    assert [[c.text for c in row] for row in again] == [[c.text for c in row] for row in found]


def test_going_on_is_the_text_in_one_piece(both):
    """At temperature 0, wherever the beginning's own tokens are read again as they were."""
    engine, backbone, samples = both
    tokenizer, tried = backbone.processor.tokenizer, 0
    for state in engine.start(samples):
        (whole,) = engine.extend([Ask(state, ["a"], TOKENS)])[0]
        length = engine._ask(state, {"max_tokens": 1, "temperature": 0.0}).prompt_tokens
        for count in range(1, TOKENS):
            (part,) = engine.extend([Ask(state, ["a"], count)])[0]
            again = tokenizer(part.text, add_special_tokens=False)["input_ids"]
            if part.tokens != count or len(again) != count or part.text != part.text.strip() or "\ufffd" in part.text:
                continue
            ids = engine._ask(part.state, {"max_tokens": 1, "temperature": 0.0}).prompt_tokens
            (rest,) = engine.extend([Ask(part.state, ["a"], TOKENS - count)])[0]
            assert ids == length + count and part.text + rest.text == whole.text
            tried += 1
    assert tried >= 3


def test_odds_are_those_of_a_forward(both):
    """Of two options that are among the likely ones, from one token."""
    engine, backbone, samples = both
    tokenizer, encoder = backbone.processor.tokenizer, backbone.encoder(DIRECT)
    compared = 0
    for sample in samples:
        prompt = encode(encoder, sample, False, engine.max_pixels)
        inputs = model_inputs(batch([prompt], backbone.processor, backbone.family.image_inputs))
        with torch.inference_mode():
            logits = backbone.model(**inputs).logits[0, -1]
        values, tokens = logits.log_softmax(-1).topk(20)
        texts = [tokenizer.decode([token]).strip() for token in tokens.tolist()]
        if not texts[0]:
            continue  # white space: the second token is read
        options = [text for text in dict.fromkeys(texts) if text.isascii() and text.isalnum()][:2]
        sums = [sum(math.exp(v) for v, text in zip(values.tolist(), texts, strict=True) if text == o) for o in options]
        (row,) = engine.plain().choose([sample], options)
        assert row[0] - row[1] == pytest.approx(math.log(sums[0] / sums[1]), abs=1e-2)
        assert row == pytest.approx([math.log(total) for total in sums], abs=1e-2)
        compared += 1
    assert compared
