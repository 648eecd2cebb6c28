"""How long samples are before an image is opened, and what each policy makes of those that are too long."""

import io
import pickle
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from lora_cot.data.collate import Collator, encode
from lora_cot.data.labels import IGNORE_INDEX
from lora_cot.data.lengths import LengthLimit, keep_fitting
from lora_cot.data.shapes import make_sample
from lora_cot.errors import DataError
from lora_cot.formats import FORMATS
from lora_cot.types import Exchange, Sample
from tests.conftest import CHAT, slots_in

FOUR_STAGE = FORMATS["four_stage"]
SHRINKING = ("qwen2_vl", "llava_next")
"""Bases that take fewer tokens for a smaller image."""
REMEDY = "raise it, or set training.long_samples to drop"
SIDES = st.integers(8, 400)


def png(size, orientation=1):
    """Bytes of an image file as a camera would write it that was held so."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, "red").save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def with_images(*sizes, number=0, earlier=()):
    """A real sample with other images, after earlier exchanges of its own."""
    sample = make_sample(number, "train", 0)
    return replace(sample, id=f"q{number}", exchanges=(*earlier, sample.last), images=tuple(map(png, sizes)))


@pytest.fixture(scope="module")
def limit(load_tiny):
    """A limit on a tiny base by its `model_type`."""

    def make(name, max_length=None, policy="error"):
        base = load_tiny(name)
        return LengthLimit(base.encoder(FOUR_STAGE), base.family.image_tokens, max_length, policy)

    return make


@pytest.fixture(scope="module")
def length(limit):
    """Tokens of a sample on a tiny base: all of them, or those of its text."""

    def measured(name, sample):
        found = limit(name).measure(sample)
        return found.length, found.text

    return measured


def refusals(samples, limit):
    """The mistakes in samples as texts."""
    with pytest.raises(DataError) as caught:
        keep_fitting(samples, limit, "data.train")
    return [str(problem) for problem in caught.value.problems]


@settings(max_examples=15)
@given(st.lists(st.tuples(SIDES, SIDES), max_size=2), st.integers(0, 9), st.integers(0, 2))
@pytest.mark.parametrize("name", CHAT)
def test_the_length_is_that_of_the_encoded_sample(limit, name, sizes, number, turns):
    """Headers and text alone tell the number of tokens, for several images and several turns too."""
    earlier = tuple(make_sample(turn, "train", 1).last for turn in range(turns))
    sample = with_images(*sizes, number=number, earlier=earlier)
    measured, encoder = limit(name).measure(sample), limit(name).encoder
    encoded = encode(encoder, sample, True)
    assert measured.length == len(encoded.input_ids)
    assert measured.images == slots_in(encoder.processor, encoded.input_ids)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", SHRINKING)
def test_a_photograph_is_measured_upright(limit, name, orientation):
    """An image that is turned when it is opened takes the tokens of the turned one."""
    sample = replace(with_images(), images=(png((30, 200), orientation), png((100, 50), orientation)))
    measured = limit(name).measure(sample)
    assert measured.length == len(encode(limit(name).encoder, sample, True).input_ids)


@pytest.mark.parametrize("name", ["llava", *SHRINKING])
def test_at_the_limit_nothing_happens(limit, length, name):
    """A sample of exactly max_length tokens is kept as it is by every policy; one token less is too few."""
    sample = with_images((200, 200))
    tokens, _ = length(name, sample)
    for policy in ("error", "drop", "shrink_image"):
        kept = keep_fitting([sample], limit(name, tokens, policy), "data.train")
        assert (kept.samples, kept.lengths, kept.dropped, kept.shrunk) == ([sample], [tokens], [], 0)
    assert len(refusals([sample], limit(name, tokens - 1))) == 1
    assert keep_fitting([sample], limit(name), "data.train").lengths == [tokens]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_all_that_are_too_long_are_refused_together(limit, length, name):
    """Each is named with its length; a smaller image is a remedy only where there is one that takes fewer tokens."""
    samples = [with_images((200, 200), number=number) for number in range(3)]
    samples.insert(1, replace(with_images(number=7), exchanges=(replace(samples[0].last, question="why " * 400),)))
    tokens = [length(name, sample) for sample in samples]
    most = tokens[2][0]
    found = refusals(samples, limit(name, most))
    long = [i for i, (whole, _) in enumerate(tokens) if whole > most]
    assert 1 in long and 2 not in long and len(found) == len(long)
    for text, i in zip(found, long, strict=True):
        whole, of_text = tokens[i]
        what = f"{whole} tokens ({whole - of_text} of images) are more than training.max_length={most}"
        shrinks = bool(samples[i].images) and name != "llava"
        assert text == f"data.train · {samples[i].id} · {what} · {REMEDY}{' or shrink_image' * shrinks}"


@pytest.mark.parametrize(("name", "size", "helps"), [("llava_next", (200, 200), True), ("qwen2_vl", (28, 28), False)])
def test_shrinking_is_advised_where_it_would_help(limit, length, name, size, helps):
    """Whether images can be made smaller is asked of the sample's own."""
    sample = with_images(size)
    most = length(name, sample)[0] - 1
    (found,) = refusals([sample], limit(name, most))
    assert limit(name, most, "shrink_image").measure(sample).length <= most or not helps
    assert found.endswith(REMEDY + " or shrink_image" * helps)


def test_more_than_20_are_counted(limit):
    """A limit that suits no sample is told in 21 lines."""
    found = refusals([with_images((60, 60), number=number) for number in range(25)], limit("qwen2_vl", 30))
    assert len(found) == 21 and found[-1] == "data.train · and 5 more problems"


@pytest.mark.parametrize("name", ["llava", *SHRINKING])
def test_long_samples_are_dropped_and_named(limit, length, name):
    """The rest keeps its order and lengths."""
    samples = [with_images((200, 200), number=number) for number in range(8)]
    tokens = [length(name, sample)[0] for sample in samples]
    most = sorted(tokens)[3]
    kept = keep_fitting(samples, limit(name, most, "drop"), "data.train")
    short = [i for i, count in enumerate(tokens) if count <= most]
    assert kept.samples == [samples[i] for i in short] and kept.lengths == [tokens[i] for i in short]
    assert kept.dropped == [f"q{i}" for i in range(8) if i not in short] and 0 < len(kept.dropped) < 8
    assert kept.shrunk == 0


@pytest.mark.parametrize("room", [4, 12, 20])
@pytest.mark.parametrize("sizes", [[(300, 300)], [(120, 340)], [(150, 150), (60, 90)]], ids=str)
@pytest.mark.parametrize("name", SHRINKING)
def test_images_are_made_smaller_until_the_sample_fits(limit, load_tiny, length, name, sizes, room):
    """What is trained on has at most max_length tokens, its text whole to the last closing tag and the end token."""
    sample = with_images(*sizes)
    whole, text = length(name, sample)
    most = text + room * len(sizes)
    if name == "llava_next" and room == 4:
        most += 6 * len(sizes)  # 4 tokens are the whole image, 6 the least of its tiles
    tight = limit(name, most, "shrink_image")
    kept = keep_fitting([sample], tight, "data.train")
    encoded = Collator(tight, load_tiny(name).family.image_inputs).encode(sample)
    assert kept.lengths == [len(encoded.input_ids)]
    assert text < len(encoded.input_ids) <= most
    assert kept.shrunk == (whole > most)
    plain = encode(tight.encoder, sample, True)
    slot = tight.encoder.image_token_id
    assert [i for i in encoded.input_ids if i != slot] == [i for i in plain.input_ids if i != slot]
    trained = [label for label in encoded.labels if label != IGNORE_INDEX]
    assert trained == [label for label in plain.labels if label != IGNORE_INDEX]
    assert tight.encoder.tokenizer.decode(trained).endswith("</CONCLUSION><|end|>")
    assert kept.samples == [sample]


def test_images_are_not_made_smaller_than_they_must(limit, length):
    """The tenth part more would not have fitted."""
    sample = with_images((200, 200))
    _, text = length("qwen2_vl", sample)
    for room in range(2, 49):
        measured = limit("qwen2_vl", text + room, "shrink_image").measure(sample)
        assert measured.images <= room
        before = round(200 * measured.scale / 0.9)
        assert length("qwen2_vl", with_images((before, before)))[0] - text > room


@pytest.mark.parametrize("policy", ["error", "drop", "shrink_image"])
def test_short_samples_are_left_alone(limit, length, policy):
    """A policy changes nothing in samples that fit, and is not asked where there is no limit."""
    samples = [with_images((200, 200)), with_images()]
    tokens = [length("qwen2_vl", sample)[0] for sample in samples]
    for most in (None, 2000):
        kept = keep_fitting(samples, limit("qwen2_vl", most, policy), "data.train")
        assert (kept.samples, kept.lengths, kept.dropped, kept.shrunk) == (samples, tokens, [], 0)


@pytest.mark.parametrize(("name", "least"), [("llava", 4), ("llava_next", 10), ("qwen2_vl", 1)])
def test_what_no_image_size_can_mend_is_dropped(limit, length, name, least):
    """Where the smallest image still leaves too little room for the text, the sample is left out and named."""
    long, short = with_images((200, 200)), with_images((200, 200), number=1)
    short = replace(short, exchanges=(Exchange("?", stages=dict.fromkeys(long.last.stages, "x")),))
    _, text = length(name, long)
    kept = keep_fitting([long, short], limit(name, text + least - 1, "shrink_image"), "data.train")
    assert (kept.dropped, kept.samples) == ([long.id], [short])
    tight = limit(name, text + least - 1)
    assert tight.too_long(long, tight.measure(long)).remedy == REMEDY, "shrinking is not advised"


def test_dropping_every_image_is_refused(limit, length):
    """A limit below one image's tokens would leave the text-only rows alone: the sentence says what images take."""
    text = replace(with_images(number=1), images=())
    _, most = length("llava", text)
    for policy in ("drop", "shrink_image"):
        with pytest.raises(DataError, match=rf"max_length={most}: images take at least 4 tokens"):
            keep_fitting([with_images((200, 200)), text], limit("llava", most, policy), "data.train")


@pytest.mark.parametrize(("name", "tokens"), [("llava", 4), ("qwen2_vl", 49), ("llava_next", 24)])
def test_a_limit_below_one_image_is_said_in_a_sentence(limit, name, tokens):
    """Not even an empty text would fit beside the image: the error says so, and what helps."""
    (found,) = refusals([with_images((200, 200))], limit(name, tokens - 1))
    what = f"its images alone take {tokens} tokens, more than training.max_length={tokens - 1}"
    assert f"q0 · {what} · {REMEDY}" in found


def test_an_image_as_long_as_the_limit_is_not_longer(limit):
    """The sentence about images alone is kept for images that alone are too long."""
    (found,) = refusals([with_images((200, 200))], limit("qwen2_vl", 49))
    assert "more than training.max_length=49" in found and "images alone take 49 tokens, more" not in found


def test_text_alone_that_is_too_long_cannot_be_shrunk(limit, length):
    """Without an image there is nothing to make smaller: the sample is left out."""
    sample = with_images()
    tokens, _ = length("qwen2_vl", sample)
    kept = keep_fitting([sample], limit("qwen2_vl", tokens - 1, "shrink_image"), "data.train")
    assert (kept.samples, kept.dropped) == ([], [sample.id])


def test_an_image_that_cannot_be_read_is_reported_with_the_others(limit):
    """A damaged header and a missing stage are found while measuring, under the samples' names."""
    damaged = replace(with_images(number=1), images=(b"junk",))
    untold = replace(with_images(number=2), exchanges=(Exchange("?"),))
    found = refusals([with_images((200, 200)), damaged, untold], limit("qwen2_vl", 60))
    assert [text.split(" · ")[1] for text in found] == ["q1", "q2", "q0"]
    assert "not an image in a known format" in found[0] and "no text for SUMMARY" in found[1]
    assert len(refusals([damaged, untold], limit("qwen2_vl", policy="drop"))) == 2


@pytest.mark.parametrize("policy", ["error", "drop", "shrink_image"])
def test_workers_find_the_same(limit, policy):
    """Measured in two other processes, samples come back in their order with the same lengths and the same mistakes."""
    rng = random.Random(0)
    samples = [with_images((rng.randint(30, 300), 200), number=number) for number in range(150)]
    samples.append(with_images(number=151))
    most = limit("qwen2_vl", 190, policy)
    if policy == "error":
        errors = []
        for workers in (0, 2):
            with pytest.raises(DataError) as caught:
                keep_fitting(samples, most, "data.train", workers)
            errors.append(caught.value.problems)
        assert errors[0] == errors[1] and len(errors[0]) == 14
    else:
        found = keep_fitting(samples, most, "data.train")
        assert keep_fitting(samples, most, "data.train", workers=2) == found
        assert found.samples and (found.dropped if policy == "drop" else found.shrunk)


def test_what_measures_travels_to_workers(limit, monkeypatch):
    """It does where workers are started afresh too, as on macOS, and not only where they are copies of this process."""

    def started_afresh(samples, collate_fn, num_workers, **options):
        return DataLoader(samples, collate_fn=pickle.loads(pickle.dumps(collate_fn)), **options)

    monkeypatch.setattr("torch.utils.data.DataLoader", started_afresh)
    samples = [with_images((200, 200))]
    assert keep_fitting(samples, limit("llava"), "data.train", workers=2).samples == samples


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "mllama"])
def test_a_collator_travels_to_workers(limit, load_tiny, name):
    """Pickled, as a worker process gets it, it makes the same batch."""
    rows = [{"sample": with_images((200, 200), number=number)} for number in range(2)]
    collator = Collator(limit(name, 400, "shrink_image"), load_tiny(name).family.image_inputs)
    made, again = collator(rows), pickle.loads(pickle.dumps(collator))(rows)
    assert made.keys() == again.keys()
    assert all(made[key].equal(again[key]) for key in made)


def test_the_collator_refuses_what_slipped_through(limit, tiny):
    """A sample that is too long is never cut, whoever hands it to the collator."""
    collator = Collator(limit("llava", 20), tiny.family.image_inputs)
    with pytest.raises(DataError, match=r"q0 · \d+ tokens \(4 of images\) are more than training\.max_length=20"):
        collator([{"sample": with_images((200, 200))}])


def test_a_sample_of_another_kind_is_a_sample(limit):
    """Text alone is measured too."""
    sample = Sample("t", (Exchange("2+2?", stages=dict.fromkeys([s.name for s in FOUR_STAGE.stages], "4")),))
    measured = limit("qwen2_vl", 1000, "shrink_image").measure(sample)
    assert (measured.images, measured.scale) == (0, 1.0)
    assert measured.length == len(encode(limit("qwen2_vl").encoder, sample, True).input_ids)
