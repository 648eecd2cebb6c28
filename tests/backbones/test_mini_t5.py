"""The miniature T5 that sees: a tokenizer with T5's gaps, a model that begins well, and a ViT that is taught alone."""

import string

import pytest
import torch
from transformers import AutoTokenizer

from lora_cot.backbones.mini import corpus, t5_vision
from lora_cot.backbones.t5_vision_model import T5VisionForConditionalGeneration
from lora_cot.data import shapes
from lora_cot.data.images import open_image
from lora_cot.formats import FORMATS


@pytest.fixture(scope="module")
def tokenizer():
    """The tokenizer of the shipped size."""
    return t5_vision.make_tokenizer(640)


@pytest.fixture
def model(tokenizer):
    """A small random model."""
    torch.manual_seed(0)
    return t5_vision.make_model(tokenizer, 64, 2).eval()


def written(cot_format, exchange):
    """Prompt and target of each pass, as T5 spells them."""
    for one in cot_format.spelled("brackets").passes:
        yield one.question(exchange)
        yield "".join(text for _, text in one.write(one.gold(exchange)))


@pytest.mark.parametrize("name", ["two_stage", "one_stage", "answer_only", "answer_first", "four_stage", "direct"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_text_of_shapes_comes_back(tokenizer, name, split):
    """But for its line breaks, which are spaces; no token is unknown, and the mean piece is longer than three characters."""
    for number in range(100):
        for text in written(FORMATS[name], shapes.make_sample(number, split, 0).last):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids and len(ids) < len(text) / 3 + 2
            assert tokenizer.decode(ids, skip_special_tokens=True) == " ".join(text.split())


def test_its_special_tokens_are_t5s(tokenizer):
    """Padding 0, end 1, unknown 2; the end closes every text, and nothing opens one."""
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.bos_token is None
    assert tokenizer("red")["input_ids"][-1:] == [1] and len(tokenizer("red")["input_ids"]) == 2
    assert tokenizer("red", "blue")["input_ids"].count(1) == 2


def test_it_lacks_what_t5s_lacks(tokenizer):
    """`<`, `{`, `}` and `~` are unknown, other printable ASCII is not; whitespace of any kind and length is one space."""
    unknown = [c for c in string.printable.strip() if tokenizer.unk_token_id in tokenizer(c)["input_ids"]]
    assert sorted(unknown) == sorted("<{}~")
    assert tokenizer("<SUMMARY>")["input_ids"].count(tokenizer.unk_token_id) == 1
    assert tokenizer("a\n\nb \t c")["input_ids"] == tokenizer("a b c")["input_ids"]
    assert tokenizer.decode(tokenizer("Zyx \\n (q)!")["input_ids"], skip_special_tokens=True) == "Zyx \\n (q)!"


def test_no_tag_or_cue_is_in_pieces_the_corpus_never_shows(tokenizer):
    """Stage tags in brackets, cues and digits are pieces of the vocabulary that its texts are made of."""
    taught = {token for text in t5_vision.tokenizer_texts() for token in tokenizer(text)["input_ids"]}
    for cot_format in FORMATS.values():
        for stage in (spelled := cot_format.spelled("brackets")).stages:
            for text in (spelled.opening(stage), spelled.closing(stage), stage.cue):
                assert set(tokenizer(text)["input_ids"]) <= taught


def test_it_is_saved_and_found_by_transformers(tokenizer, tmp_path):
    """The same tokens after AutoTokenizer has read it."""
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "Question: What is <here>? Solution: 12\n[ANSWER] red circle. [/ANSWER]"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (again.pad_token, again.eos_token, again.unk_token) == ("<pad>", "</s>", "<unk>")


def test_the_model_begins_as_t5_does_and_not_with_deviations_of_one(model):
    """Encoder and decoder alike: a saturated encoder does not learn to be read."""
    for stack in (model.encoder, model.decoder):
        attention = stack.block[0].layer[0].SelfAttention
        assert attention.q.weight.std().item() == pytest.approx((64 * 32) ** -0.5, rel=0.1)
        assert attention.v.weight.std().item() == pytest.approx(64**-0.5, rel=0.1)
        assert attention.relative_attention_bias.weight[1, 0] > 3


@pytest.mark.parametrize("layers", [1, 2])
def test_the_model_is_saved_generates_and_fits_four_bits(tokenizer, tmp_path, layers):
    """The same greedy tokens after a round trip; every linear layer's width is a multiple of 64."""
    model = t5_vision.make_model(tokenizer, 64, layers).eval()
    model.save_pretrained(tmp_path)
    again = T5VisionForConditionalGeneration.from_pretrained(tmp_path).eval()
    ids = tokenizer(["Describe the image.", "Describe it."], padding=True, return_tensors="pt")
    features = torch.randn(2, t5_vision.PATCHES, t5_vision.VISION_WIDTH)
    made, same = (m.generate(**ids, vision_features=features, max_new_tokens=8, do_sample=False) for m in (model, again))
    assert torch.equal(made, same)
    layers = [module for module in model.encoder.block.modules() if isinstance(module, torch.nn.Linear)]
    assert layers and all(side % 64 == 0 for layer in layers for side in layer.weight.shape)


def test_the_image_processor_takes_any_shape_and_is_found_again(tmp_path):
    """Without torchvision; the same pixels once it is saved."""
    processor = t5_vision.make_image_processor()
    scene, rng = shapes.scene_of(3, "train", corpus.SEED)
    image = open_image(shapes.draw(scene, rng))
    made = processor(image, return_tensors="pt")["pixel_values"][0]
    assert processor(image.resize((200, 90)), return_tensors="pt")["pixel_values"].shape == (1, 3, 56, 56)
    processor.save_pretrained(tmp_path)
    again = type(processor).from_pretrained(tmp_path)
    torch.testing.assert_close(again(image, return_tensors="pt")["pixel_values"][0], made)


@pytest.mark.slow
def test_a_taught_vision_encoder_sees_every_cell(tokenizer):
    """A linear probe on its kept features is right on 99 % of the cells of 300 validation images."""
    torch.manual_seed(0)
    processor = t5_vision.make_processor(tokenizer, "")
    t5_vision.teach_to_see(processor)
    features, cells = {}, {}
    for split, count in (("train", 1500), ("validation", 300)):
        found = [shapes.scene_of(number, split, 7) for number in range(count)]
        cells[split] = torch.tensor(
            [[t5_vision.CONTENTS.index(str(c or "nothing")) for c in scene.cells] for scene, _ in found]
        )
        features[split] = torch.stack([processor.features.of(shapes.draw(*one)) for one in found])[:, 1:].float()
    probe = torch.nn.Linear(t5_vision.VISION_WIDTH, len(t5_vision.CONTENTS))
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=100)

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(probe(features["train"]).flatten(0, 1), cells["train"].flatten())
        value.backward()
        return value

    optimizer.step(loss)
    right = probe(features["validation"]).argmax(-1) == cells["validation"]
    assert right.float().mean() > 0.99
