"""T5 that sees: the fusion is the paper's formula, and a plain T5 becomes one without losing a weight."""

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from lora_cot.backbones.fusion import GatedFusion
from lora_cot.backbones.t5_vision_model import T5VisionConfig, T5VisionForConditionalGeneration

SIZES = {"vocab_size": 100, "d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2}
SEES = {"image_width": 48, "image_patches": 5}


def linear(layer, values):
    """A linear layer in NumPy."""
    return values @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def by_hand(fusion, text, image):
    """Equations 1 to 5 of arXiv 2302.00923, one text and one image at a time."""
    fused = []
    for words, patches in zip(text, image, strict=True):
        seen = linear(fusion.image_projection, patches)
        scores = words @ seen.T / np.sqrt(words.shape[-1])
        share = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (share / share.sum(-1, keepdims=True)) @ seen
        gate = 1 / (1 + np.exp(-linear(fusion.gate, np.concatenate([words, attended], -1))))
        fused.append((1 - gate) * words + gate * attended)
    return np.stack(fused)


def test_the_fusion_is_the_papers():
    """Against NumPy, for several texts and images at once."""
    torch.manual_seed(0)
    fusion = GatedFusion(16, 12)
    text, image = torch.randn(3, 7, 16), torch.randn(3, 5, 12)
    expected = by_hand(fusion, text.numpy(), image.numpy())
    np.testing.assert_allclose(fusion(text, image).detach().numpy(), expected, atol=1e-6)


def test_the_fusion_computes_in_its_own_precision():
    """And gives the text back in the text's."""
    fusion = GatedFusion(16, 12)
    made = fusion(torch.randn(1, 3, 16, dtype=torch.bfloat16), torch.randn(1, 5, 12, dtype=torch.float16))
    assert made.dtype == torch.bfloat16 and fusion.gate.weight.dtype == torch.float32


@pytest.fixture
def model():
    """A tiny random one."""
    torch.manual_seed(0)
    return T5VisionForConditionalGeneration(T5VisionConfig(**SIZES, **SEES, decoder_start_token_id=0)).eval()


def inputs(texts=2):
    """Texts with an image each, and what is to be said."""
    torch.manual_seed(1)
    ids = torch.randint(3, 99, (texts, 7))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "vision_features": torch.randn(texts, 5, 48)}


def test_what_is_generated_is_what_the_model_says(model):
    """Greedy generation, which reads text and image once, gives the likeliest token of every whole forward."""
    given, said = inputs(), torch.zeros(2, 1, dtype=torch.long)
    for _ in range(6):
        said = torch.cat([said, model(**given, decoder_input_ids=said).logits[:, -1].argmax(-1, keepdim=True)], 1)
    model.generation_config.eos_token_id = None
    assert model.generate(**given, max_new_tokens=6, do_sample=False).tolist() == said.tolist()
    blind = model.generate(**{**given, "vision_features": None}, max_new_tokens=6, do_sample=False)
    assert blind.shape == said.shape


def test_no_image_is_zeros(model):
    """Not a blank picture; and an image changes what is said."""
    given, labels = inputs(), torch.tensor([[5, 6, 7], [8, 9, 1]])
    loss = {
        name: model(**{**given, "vision_features": features}, labels=labels).loss
        for name, features in (("seen", given["vision_features"]), ("zeros", torch.zeros(2, 5, 48)), ("none", None))
    }
    assert loss["none"] == loss["zeros"] != loss["seen"]


def test_a_row_does_not_depend_on_its_mates(model):
    """Neither on padding nor on another row's image."""
    given, said = inputs(), torch.zeros(2, 1, dtype=torch.long)
    together = model(**given, decoder_input_ids=said).logits
    padded = {
        "input_ids": torch.nn.functional.pad(given["input_ids"][:1], (0, 4)),
        "attention_mask": torch.nn.functional.pad(given["attention_mask"][:1], (0, 4)),
        "vision_features": given["vision_features"][:1],
    }
    torch.testing.assert_close(model(**padded, decoder_input_ids=said[:1]).logits, together[:1], atol=1e-5, rtol=1e-4)


def test_a_saved_model_is_the_same(model, tmp_path):
    """Its fusion included, whose weights are not made anew."""
    model.save_pretrained(tmp_path)
    again = T5VisionForConditionalGeneration.from_pretrained(tmp_path).eval()
    said = torch.zeros(2, 1, dtype=torch.long)
    assert torch.equal(again(**inputs(), decoder_input_ids=said).logits, model(**inputs(), decoder_input_ids=said).logits)


def test_a_plain_t5_becomes_one(tmp_path):
    """All its weights stay, the embeddings tied; the fusion begins with a gate that is neither open nor shut."""
    torch.manual_seed(0)
    plain = T5ForConditionalGeneration(T5Config(**SIZES, decoder_start_token_id=0))
    plain.save_pretrained(tmp_path)
    config = T5VisionConfig.from_pretrained(tmp_path, **SEES)
    model = T5VisionForConditionalGeneration.from_pretrained(tmp_path, config=config)
    mine, theirs = model.state_dict(), plain.state_dict()
    assert all(torch.equal(mine[name], weight) for name, weight in theirs.items())
    assert {name for name in mine if name not in theirs} == {name for name in mine if "fusion" in name}
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is model.shared.weight
    gate = model.encoder.fusion.gate
    assert 0.02 < float(gate.weight.std()) < 0.3 and not gate.bias.any()


def test_the_fusion_learns(model):
    """Every weight of it gets a gradient, whatever else is frozen."""
    model.requires_grad_(False)
    model.encoder.fusion.requires_grad_(True)
    model(**inputs(), labels=torch.tensor([[5, 6, 7], [8, 9, 1]])).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.encoder.fusion.parameters())
