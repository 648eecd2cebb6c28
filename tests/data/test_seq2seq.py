"""Samples for an encoder-decoder: the prompt is what training reads, the target parses back, T5's vocabulary is respected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_cot.data.collate import batch, encode
from lora_cot.data.labels import IGNORE_INDEX, NO_STAGE
from lora_cot.data.lengths import LengthLimit
from lora_cot.data.shapes import make_sample
from lora_cot.errors import DataError
from lora_cot.formats import FORMATS
from lora_cot.types import Exchange, Sample

PASSES = {one.name: one for cot_format in FORMATS.values() for one in cot_format.passes}
SAMPLES = [make_sample(number, "train", 0) for number in range(20)]


@pytest.fixture(scope="module")
def t5(load_tiny):
    """The tiny T5 that sees."""
    return load_tiny("t5_vision")


def asked(question, answer="yes", **more):
    """A sample of one question."""
    return Sample("q", (Exchange(question, answer=answer),), **more)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("sample", SAMPLES[:4], ids=lambda sample: sample.id)
def test_what_is_read_is_the_prompt_and_what_is_written_parses_back(t5, name, sample):
    """In every format: stages are the gold ones, in their order, with their tags in brackets, each token its stage's."""
    encoder = t5.encoder(PASSES[name])
    trained, prompt = encode(encoder, sample, True), encode(encoder, sample, False)
    assert trained.input_ids == prompt.input_ids and prompt.labels == [] and IGNORE_INDEX not in trained.labels
    assert trained.is_pair and trained.trained == len(trained.labels)
    text = t5.processor.tokenizer.decode(trained.labels[:-1])
    gold = {stage: " ".join(words.split()) for stage, words in encoder.format.gold(sample.last).items()}
    parsed = encoder.format.parse(text)
    assert parsed.outcome == "complete" and {found.name: found.text for found in parsed.stages} == gold
    for number, stage in enumerate(encoder.format.stages):
        own = [label for label, owner in zip(trained.labels[:-1], trained.stage_ids, strict=False) if owner == number]
        said = t5.processor.tokenizer.decode(own)
        assert gold[stage.name] in said and said.startswith(encoder.format.opening(stage) or gold[stage.name])
    assert trained.stage_ids == sorted(trained.stage_ids) and trained.labels[-1] == t5.processor.tokenizer.eos_token_id


def test_no_token_of_any_format_is_unknown(t5):
    """Brackets, where T5 has no `<`."""
    tokenizer = t5.processor.tokenizer
    assert tokenizer.unk_token_id in tokenizer("<SUMMARY>")["input_ids"] and "{" not in tokenizer.get_vocab()
    for one in PASSES.values():
        for sample in SAMPLES:
            encoded = encode(t5.encoder(one), sample, True)
            assert tokenizer.unk_token_id not in [*encoded.input_ids, *encoded.labels]


@given(text=st.text(st.characters(min_codepoint=9, max_codepoint=126), max_size=60))
def test_tokens_are_the_tokenizers_own(t5, text):
    """Of any text without control tokens, white space collapsed."""
    encoder, tokenizer = t5.encoder(FORMATS["direct"]), t5.processor.tokenizer
    spaced = " ".join(text.split())
    if not encoder.control_tokens(spaced):
        assert encoder.prompt(asked(text), []).input_ids == tokenizer(spaced)["input_ids"]


@pytest.mark.parametrize("control", ["</s>", "<pad>", "<unk>"])
def test_text_cannot_forge_control_tokens(t5, control):
    """Neither in a question nor in an answer: there is one end, the last."""
    encoder, tokenizer = t5.encoder(FORMATS["direct"]), t5.processor.tokenizer
    encoded = encoder.training(asked(f"a{control}b {control}", f"{control} c"), [])
    for ids in (encoded.input_ids, encoded.labels):
        assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.pad_token_id not in ids
    assert encoder.control_tokens(f"a{control}b") == [control]


def test_labels_are_padded_with_what_carries_no_loss(t5):
    """The released code trains on padding; here it is IGNORE_INDEX, and each text is padded to its own longest."""
    encoder = t5.encoder(PASSES["rationale"])
    rows = [encode(encoder, SAMPLES[number], True) for number in range(6)]
    made = batch(rows, t5.processor, t5.family.image_inputs)
    assert len({len(row.labels) for row in rows}) > 1
    for place, row in enumerate(rows):
        rest = made["labels"].shape[1] - len(row.labels)
        assert made["labels"][place].tolist() == row.labels + [IGNORE_INDEX] * rest
        assert made["stage_ids"][place].tolist() == row.stage_ids + [NO_STAGE] * rest
        assert made["attention_mask"][place].sum() == len(row.input_ids)
    assert made["vision_features"].shape == (6, *t5.processor.features.shape)


def test_a_row_without_an_image_has_zeros(t5):
    """Not a blank picture's features."""
    encoder = t5.encoder(FORMATS["direct"])
    rows = [encode(encoder, sample, True) for sample in (SAMPLES[0], asked("2 and 2?", "4"))]
    features = batch(rows, t5.processor, t5.family.image_inputs)["vision_features"]
    assert features[0].any() and not features[1].any()
    assert features[0].half().equal(t5.processor.features.of(SAMPLES[0].images[0]))
    assert t5.family.sees({"vision_features": features}) and not t5.family.sees({"vision_features": features[1:]})


def test_what_it_cannot_take_is_refused(t5):
    """Conversations and several images, when they are measured as when they are trained on."""
    encoder = t5.encoder(FORMATS["direct"])
    talk = Sample("talk", (Exchange("a?", answer="b"), Exchange("c?", answer="d")))
    two = asked("Which is wider?", images=SAMPLES[0].images * 2)
    for sample, what in ((talk, "a conversation of 2 exchanges"), (two, "2 images, and this model sees one")):
        for call in (lambda sample=sample: encode(encoder, sample, True), lambda sample=sample: encoder.count(sample)):
            with pytest.raises(DataError, match=what):
                call()


@pytest.mark.parametrize("name", PASSES)
def test_the_limit_is_on_each_of_the_two_texts(t5, name):
    """`max_length` is compared with the longer one, and its measure is that of the encoded sample."""
    encoder = t5.encoder(PASSES[name])
    limit = LengthLimit(encoder, t5.family.image_tokens, max_length=50)
    for sample in SAMPLES:
        encoded, measured = encode(encoder, sample, True), limit.measure(sample)
        assert (measured.length, measured.images) == (max(len(encoded.input_ids), len(encoded.labels)), 0)
        assert measured.trained == len(encoded.labels)
        assert (limit.too_long(sample, measured) is None) == (measured.length <= 50)


def test_characters_that_cannot_be_spelled_are_told(t5, load_tiny):
    """`<` and braces; a vocabulary of bytes spells anything."""
    text = "if 2 < 3 {\n\tx} then ≤"
    assert t5.encoder(FORMATS["direct"]).unknown_characters(text) == ["<", "{", "}", "≤"]
    assert load_tiny("llava").encoder(FORMATS["direct"]).unknown_characters(text) == []
