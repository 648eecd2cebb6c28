"""What each family tells of itself is what transformers does: slots, image inputs, batches, positions."""

import pickle
import random
from dataclasses import replace

import pytest
import torch
from PIL import Image as PILImage

from lora_cot.backbones import FAMILIES
from lora_cot.data.batches import GroupedBatches
from lora_cot.data.chat import ChatEncoder, image_slots
from lora_cot.data.collate import Collator, batch, model_inputs
from lora_cot.data.lengths import LengthLimit
from lora_cot.data.shapes import make_sample
from lora_cot.formats import FORMATS
from lora_cot.types import Exchange, Sample
from tests.conftest import plain_processor, slots_in

SIZES = [(56, 56), (112, 56), (170, 56), (56, 112), (61, 97), (300, 100), (100, 300), (30, 400), (640, 480), (9, 7)]
"""Width and height: square, wide, tall, large, tiny, and none that is a multiple of anything."""

PADDED = {"padding": True, "padding_side": "right", "add_special_tokens": False, "return_tensors": "pt"}
"""How a processor is called for a training batch."""


def picture(size, seed=0):
    """An image of noise."""
    rng = random.Random(f"{size}-{seed}")
    return PILImage.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))


def sample_of(words, images):
    """A sample with as many words in its question, about as many images."""
    gold = make_sample(words, "train", 0).last
    return Sample(f"{words}-{images}", (Exchange(" ".join(["word"] * words), gold.stages),), (b"",) * images)


def answered_of(words, images):
    """The same with a short answer."""
    sample = sample_of(words, images)
    return replace(sample, exchanges=(replace(sample.last, answer="so it is"),))


def whole_text(processor, sample):
    """The whole text of a sample with its answer, by the processor's own template."""
    content = [{"type": "image"}] * len(sample.images)
    messages = [
        {"role": "user", "content": [*content, {"type": "text", "text": sample.last.question}]},
        {"role": "assistant", "content": [{"type": "text", "text": sample.last.answer}]},
    ]
    return processor.apply_chat_template(messages, tokenize=False)


def encoded(backbone, words, *sizes):
    """A training sample about images of these sizes."""
    encoder = backbone.encoder(FORMATS["four_stage"])
    return encoder.training(sample_of(words, len(sizes)), [picture(size, words) for size in sizes])


def inputs_of(backbone, rows):
    """What the model gets for a training batch."""
    made = batch(rows, backbone.processor, backbone.family.image_inputs)
    return backbone.place(model_inputs(made))


@torch.inference_mode()
def logits_of(backbone, rows):
    """Each row's logits, padding left out."""
    logits = backbone.model(**inputs_of(backbone, rows)).logits
    return [found[: len(row.input_ids)] for found, row in zip(logits, rows, strict=True)]


def test_image_tokens_are_the_slots_of_each_image(each_chat):
    """From sizes alone a family tells how many slots the processor makes, of one image and of two."""
    encoder = each_chat.encoder(FORMATS["direct"])
    pairs = zip(SIZES, [*SIZES[3:], *SIZES[:3]], strict=True)
    for sizes in [*[(size,) for size in SIZES], *pairs]:
        images = [picture(size) for size in sizes]
        slots, _ = image_slots(encoder.processor, images)
        counts = each_chat.family.image_tokens(each_chat.processor, sizes)
        assert counts == [len(slot) for slot in slots], sizes
        sample = Sample("x", (Exchange("Which?", answer="this"),), (b"",) * len(sizes))
        ids = encoder.training(sample, images).input_ids
        assert encoder.count(sample)[0] + sum(counts) == len(ids), sizes
        assert slots_in(encoder.processor, ids) == sum(counts), sizes


@pytest.mark.parametrize("counts", [(1, 1), (2, 2), (1, 2)])
def test_a_batch_is_what_the_processor_itself_makes(each_chat, counts):
    """Slots, pixels, tiles, grids, masks and token types of whole texts, padded on the right, equal the processor's."""
    family, processor = each_chat.family, each_chat.processor
    if len({family.batch_key(count) for count in counts}) > 1:
        counts = (counts[1], counts[1])
    encoder, sizes = ChatEncoder(processor, FORMATS["direct"]), iter([(170, 56), (61, 97), (100, 300), (300, 280)])
    images = [[picture(next(sizes)) for _ in range(count)] for count in counts]
    samples = [answered_of(words, count) for words, count in zip((4, 11), counts, strict=True)]
    rows = [encoder.training(sample, mine) for sample, mine in zip(samples, images, strict=True)]
    texts = [whole_text(processor, sample) for sample in samples]
    theirs = each_chat.place(plain_processor(processor)(images=images, text=texts, **PADDED))
    ours = inputs_of(each_chat, rows)
    real = theirs["attention_mask"].bool()
    assert not real.all() and ours.keys() == theirs.keys()
    assert "aspect_ratio_mask" not in ours or ours["aspect_ratio_mask"].sum(-1).min() > 1, "one tile is no test"
    for name in ours:
        mine, other = (value[name][real] if name == "cross_attention_mask" else value[name] for value in (ours, theirs))
        torch.testing.assert_close(mine, other, check_dtype=False, atol=0, rtol=0, msg=name)


ROWS = [
    (3, (56, 56)),
    (9, (170, 56)),
    (1, (100, 300)),
    (14, (61, 97), (300, 100)),
    (2, (300, 300), (30, 56)),
    (30,),
    (5,),
]
"""Words of a question, and the sizes of its images."""


def test_a_row_of_a_training_batch_is_what_it_is_alone(each_chat):
    """Batch mates of other lengths, with images of other sizes and tiles, with several or none, change no row's logits."""
    rows = [encoded(each_chat, *row) for row in ROWS]
    keys = [each_chat.family.batch_key(row.images) for row in rows]
    alone = [logits_of(each_chat, [row])[0] for row in rows]
    for numbers in GroupedBatches(keys, [len(row.input_ids) for row in rows], len(rows)):
        assert len({len(rows[n].input_ids) for n in numbers}) == len(numbers) > 1, "no padding to test"
        for number, logits in zip(numbers, logits_of(each_chat, [rows[n] for n in numbers]), strict=True):
            torch.testing.assert_close(logits, alone[number], atol=2e-5, rtol=1e-4, msg=f"row {number}")


def test_the_images_of_a_row_matter(each_chat):
    """Another image, or the same two in another order, gives other logits: none is lost on the way into a batch."""
    words, first, second = 4, (170, 56), (100, 300)
    encoder = each_chat.encoder(FORMATS["direct"])

    def logits(*sizes):
        return logits_of(each_chat, [encoder.prompt(sample_of(words, len(sizes)), [picture(size) for size in sizes])])[0][-1]

    seen = [logits(first), logits(second), logits(first, second), logits(second, first)]
    for number, one in enumerate(seen):
        assert all((one - other).abs().max() > 1e-4 for other in seen[:number])


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_images_and_none_never_share_a_batch(family):
    """Rows with and without images are never put together; where a family cannot mix numbers of images, nor are those."""
    counts = [0, 1, 2, 1, 0, 3, 2, 0, 1, 1, 2, 0, 3]
    keys = [family.batch_key(count) for count in counts]
    for seed in (None, 0, 1):
        batches = list(GroupedBatches(keys, range(len(keys)), 4, seed=seed))
        assert sorted(number for numbers in batches for number in numbers) == list(range(len(counts)))
        for numbers in batches:
            together = {counts[number] for number in numbers}
            assert together == {0} or 0 not in together
            assert family.mixes_image_counts or len(together) == 1
        assert any(len({counts[n] for n in numbers}) > 1 for numbers in batches) == family.mixes_image_counts


def test_transformers_alone_computes_a_mixed_batch_of_mllama_wrongly(load_tiny):
    """transformers 5.23 adds the values of a padding image to a row without one; ours are never in such a batch."""
    mllama = load_tiny("mllama")
    samples = [answered_of(4, 1), answered_of(9, 0)]
    texts = [whole_text(mllama.processor, sample) for sample in samples]
    mixed = mllama.processor(images=[[picture((170, 56))], []], text=texts, **PADDED)
    with torch.inference_mode():
        both = mllama.model(**mllama.place(mixed)).logits
        alone = mllama.model(**mllama.place(mllama.processor(text=texts[1:], **PADDED))).logits[0]
    assert (both[1, : len(alone)] - alone).abs().max() > 1e-3
    row = mllama.encoder(FORMATS["direct"]).training(samples[1], [])
    torch.testing.assert_close(logits_of(mllama, [row])[0], alone, atol=0, rtol=0)
    assert mllama.family.batch_key(0) != mllama.family.batch_key(1)


@torch.inference_mode()
def test_the_positions_of_training_are_those_of_decoding(each_chat):
    """Without positions the model works out those that the family tells of, of text after a batch of images too."""
    family = each_chat.family
    for rows in (ROWS[:3], ROWS[3:5], ROWS[5:]):
        inputs = inputs_of(each_chat, [encoded(each_chat, *row) for row in rows])
        own = each_chat.model(**inputs).logits
        positions, _ = family.positions(each_chat.base_model, inputs)
        given = each_chat.model(**inputs, position_ids=positions).logits
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(own[real], given[real], atol=1e-6, rtol=1e-5)


def test_what_makes_batches_travels_to_a_worker(each_chat):
    """A collator that was sent to another process makes the same batch."""
    limit = LengthLimit(each_chat.encoder(FORMATS["four_stage"]), each_chat.family.image_tokens)
    collate = Collator(limit, each_chat.family.image_inputs)
    samples = [{"sample": make_sample(number, "train", 0)} for number in range(2)]
    torch.testing.assert_close(pickle.loads(pickle.dumps(collate))(samples), collate(samples), atol=0, rtol=0)
