"""The T5 family: what becomes of a plain T5 when it learns to see, and what it is refused."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from lora_cot.adapters.lora import attach, report
from lora_cot.backbones.loading import load_backbone, load_processor
from lora_cot.backbones.quantization import quantized_parts
from lora_cot.backbones.vision_features import VisionFeatures
from lora_cot.checkpoints.opening import open_model
from lora_cot.data.collate import batch, encode
from lora_cot.data.shapes import make_sample
from lora_cot.engines.base import Ask
from lora_cot.engines.local import LocalEngine
from lora_cot.errors import AdapterError, BackboneError, DataError, RecipeError
from lora_cot.formats import FORMATS
from lora_cot.merging.merge import merge
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import LoraSection, QuantizationSection
from lora_cot.training.run import train
from lora_cot.types import Exchange, Sample

NF4 = QuantizationSection(load_in_4bit=True)
KINDS = {
    "t5": {"feed_forward_proj": "relu"},
    "flan": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
"""T5 and UnifiedQA; T5 1.1, FLAN-T5 and FLAN-Alpaca, which do not scale what their own head is given."""


@pytest.fixture(scope="module")
def eye(tmp_path_factory):
    """Folder of a tiny ViT."""
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def plain(make_base, tmp_path):
    """Folder of a plain T5 of a kind, as published: without vision."""

    def make(kind):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(make_base("t5_vision"))
        torch.manual_seed(0)
        sizes = {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2, "vocab_size": len(tokenizer)}
        model = T5ForConditionalGeneration(T5Config(**sizes, **KINDS[kind], decoder_start_token_id=0, dropout_rate=0.0))
        if kind == "flan":
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) / 8)
        model.save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        if kind == "flan":  # as the published file has it
            config = json.loads((tmp_path / kind / "config.json").read_text())
            config.pop("scale_decoder_outputs", None)
            (tmp_path / kind / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
        return tmp_path / kind

    return make


def section(base, **keys):
    """The recipe's model section."""
    return ModelSection(base=str(base), **keys)


def inputs_of(backbone, count=2):
    """A training batch."""
    encoder = backbone.encoder(FORMATS["two_stage"].passes[0])
    rows = [encode(encoder, make_sample(number, "train", 0), True) for number in range(count)]
    return backbone.place(batch(rows, backbone.processor, backbone.family.image_inputs))


def logits_of(backbone):
    """Logits of the labels of two samples."""
    with torch.no_grad():
        return backbone.label_logits(inputs_of(backbone))[0].float()


@pytest.mark.parametrize("kind", KINDS)
def test_without_vision_it_is_the_plain_t5(plain, kind):
    """`none`: no fusion, and every logit that of transformers' own model; the head's scale too."""
    folder = plain(kind)
    backbone = load_backbone(section(folder, vision_features="none"))
    inputs = {name: value for name, value in inputs_of(backbone).items() if name != "stage_ids"}
    own = T5ForConditionalGeneration.from_pretrained(folder).eval()
    assert own.config.scale_decoder_outputs == (kind == "t5") and "vision_features" not in inputs
    with torch.no_grad():
        torch.testing.assert_close(logits_of(backbone), own(**inputs).logits, atol=0, rtol=0)
    assert not any("fusion" in name for name, _ in backbone.model.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_t5_learns_to_see_and_keeps_its_weights(plain, eye, tmp_path, kind):
    """The fusion is new, of the encoder's shape; all else is the checkpoint's; what is saved is the same model again."""
    folder = plain(kind)
    backbone = load_backbone(section(folder, vision_features="vit", vision_encoder=str(eye)))
    assert backbone.processor.features.shape == (5, 48)
    kept = T5ForConditionalGeneration.from_pretrained(folder).state_dict()
    for name, tensor in backbone.model.state_dict().items():
        assert "fusion" in name or torch.equal(tensor, kept[name]), name
    inputs = inputs_of(backbone)
    assert inputs["vision_features"].shape == (2, 5, 48)
    blind = backbone.label_logits({**inputs, "vision_features": torch.zeros(2, 5, 48)})[0]
    assert (logits_of(backbone) - blind).abs().max() > 1e-3, "the image matters"
    backbone.model.save_pretrained(tmp_path / "saved")
    backbone.processor.save_pretrained(tmp_path / "saved")
    again = load_backbone(section(tmp_path / "saved"))
    assert again.processor.features.encoder == str(eye) and again.model.config.vision_features == "vit"
    torch.testing.assert_close(logits_of(again), logits_of(backbone), atol=1e-5, rtol=1e-5)
    without = load_backbone(section(tmp_path / "saved", vision_features="none"))
    torch.testing.assert_close(logits_of(without), blind, atol=1e-5, rtol=1e-5)


def test_the_beginning_of_the_fusion_follows_from_the_seed(plain, eye):
    """Whatever was drawn before, and whether features are kept already."""
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        backbone = load_backbone(section(plain("t5"), vision_features="vit", vision_encoder=str(eye)))
        found.append(backbone.model.encoder.fusion.gate.weight)
    assert torch.equal(*found)


def test_features_that_are_not_named_or_contradict_are_refused(plain, make_base, eye):
    """Before weights are read."""
    with pytest.raises(BackboneError, match=r"model\.vision_features · a T5 sees .* none are named"):
        load_processor(section(plain("t5")))
    with pytest.raises(BackboneError, match="clip, but this checkpoint was trained with vit features"):
        load_processor(section(make_base("t5_vision"), vision_features="clip"))
    with pytest.raises(BackboneError, match=r"breaks in float16: its activations overflow · set model\.dtype"):
        load_backbone(section(make_base("t5_vision"), dtype="float16"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_four_bits_every_linear_layer_of_t5_is_and_no_other(plain, eye, kind, dtype):
    """`wo` too, which transformers leaves out, and without what T5 would make of its input; the fusion in float32."""
    model = section(plain(kind), vision_features="vit", vision_encoder=str(eye), dtype=dtype)
    torch.manual_seed(0)
    full = load_backbone(model)
    torch.manual_seed(0)
    backbone = load_backbone(model, NF4)
    layers = 2 * ((4 + 8) + (3 if kind == "flan" else 2) * 2)
    assert quantized_parts(backbone.model, backbone.family) == {"projector": 0, "language_model": layers, "lm_head": 0}
    near, exact = logits_of(backbone), logits_of(full)
    assert torch.corrcoef(torch.stack([near.flatten(), exact.flatten()]))[0, 1] > 0.9
    lines = {line.part: line for line in report(attach(backbone, LoraSection(r=4)))}
    assert lines["projector"].precision == "float32" and lines["projector"].trained == lines["projector"].parameters > 0
    assert lines["language_model"].adapted == layers and lines["lm_head"].trained == 0
    whole = QuantizationSection(load_in_4bit=True, bnb_4bit_quant_storage="uint8")
    with pytest.raises(RecipeError, match="bnb_4bit_quant_storage · uint8: T5 rounds"):
        load_backbone(model, whole)


def test_what_would_be_float16_or_quantise_the_fusion_is_not(plain, eye):
    """float16 by no door; the fusion keeps its precision whatever skip_parts says."""
    model = section(plain("t5"), vision_features="vit", vision_encoder=str(eye))
    for key in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
        with pytest.raises(RecipeError, match=f"{key} · a t5_vision model cannot be computed in float16"):
            load_backbone(model, QuantizationSection(load_in_4bit=True, **{key: "float16"}))
    backbone = load_backbone(model, QuantizationSection(load_in_4bit=True, skip_parts=["lm_head"]))
    assert quantized_parts(backbone.model, backbone.family)["projector"] == 0


def test_a_checkpoint_without_its_head_is_refused(plain):
    """A random one in its place would be trained on, and drawn anew at every load."""
    folder = plain("flan")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match=r"lacks 1 weights, lm_head\.weight among them"):
        load_backbone(section(folder, vision_features="none"))


def test_keys_that_would_be_ignored_are_refused(make_base, plain, eye):
    """Vision features of a base that has eyes; an encoder beside none, or of a checkpoint that has its own."""
    for base, keys in (
        (make_base("llava"), {"vision_features": "clip"}),
        (make_base("t5_vision"), {"vision_encoder": str(eye)}),
        (plain("t5"), {"vision_features": "none", "vision_encoder": str(eye)}),
    ):
        with pytest.raises(BackboneError, match=r"model\.vision_\w+ · .* · take it out"):
            load_processor(section(base, **keys))


def test_eager_attention_answers_prompts_of_different_lengths(make_base):
    """As the fused kind does."""
    samples = [make_sample(0, "test", 0), Sample("short", (Exchange("2 and 2?"),))]
    found = []
    for kind in ("eager", "sdpa"):
        engine = LocalEngine(load_backbone(section(make_base("t5_vision"), attn_implementation=kind)), FORMATS["direct"])
        found.append([c.text for (c,) in engine.extend([Ask(state, ["a"], 8) for state in engine.start(samples)])])
    assert found[0] == found[1]
    with pytest.raises(BackboneError, match=r"model\.attn_implementation · .* · leave it out"):
        load_backbone(section(make_base("t5_vision"), attn_implementation="flash_attention_2"))


def test_the_fusion_gets_no_adapter(load_tiny):
    """It is trained in full, and a part that T5 does not have is told."""
    for part, what in (
        ("projector", "projector is trained in full, with the adapters"),
        ("vision_encoder", "has no vision_encoder"),
    ):
        with pytest.raises(AdapterError, match=what):
            attach(load_tiny("t5_vision"), LoraSection(parts=[part]))


@pytest.mark.parametrize("options", [(), pytest.param(("quantization=null",), marks=pytest.mark.slow)], ids=["nf4", "full"])
def test_what_is_trained_is_saved_merged_and_loaded_anywhere(make_recipe, plain, eye, tmp_path, options):
    """One recipe, in four bits and not: fusion in the adapter in float32; the merged folder needs nothing else."""
    model = {"base": str(plain("flan")), "dtype": "bfloat16", "vision_features": "vit", "vision_encoder": str(eye)}
    keys = ("training.max_steps=3", "format.name=answer_only", "training.learning_rate=5e-2")
    run = train(make_recipe(tmp_path, *keys, *options, model=model, search={}), tmp_path)
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    fusion = {name: tensor for name, tensor in adapter.items() if "fusion" in name}
    assert len(fusion) == 4 and {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    tuned = open_model(str(run), "none").backbone
    (merged_report,) = merge(run, onto="full").reports
    assert merged_report.adapter_vs_merged.top1_agreement >= 0.98
    merged = AutoModelForImageTextToText.from_pretrained(run / "merged")
    for name in ("image_projection", "gate"):
        layer = merged.encoder.fusion.get_submodule(name)
        for kind in ("weight", "bias"):
            (saved,) = (tensor for key, tensor in fusion.items() if f"{name}.{kind}" in key)
            assert torch.equal(getattr(layer, kind), saved)
    opened = open_model(str(run / "merged")).backbone
    assert opened.processor.features.encoder == str(run / "merged" / "vision_encoder")
    torch.testing.assert_close(logits_of(opened), logits_of(tuned), atol=0.15, rtol=0.05)


def test_data_without_an_image_is_told(make_recipe, make_base, tmp_path):
    """A fusion that never sees anything would be found dead after three steps."""
    (tmp_path / "text.jsonl").write_text('{"id": "1", "question": "2 and 2?", "answer": "4"}\n' * 1)
    data = {"train": [{"source": "jsonl", "path": str(tmp_path / "text.jsonl")}]}
    recipe = make_recipe(tmp_path, f"model.base={make_base('t5_vision')}", "format.name=answer_only", data=data, search={})
    with pytest.raises(DataError, match=r"vision_features · no sample that is trained on has an image · set it to none"):
        train(recipe, tmp_path)


def test_a_vocabulary_that_is_a_sentencepiece_model_is_read(plain, eye):
    """UnifiedQA's repositories hold nothing else."""
    import sentencepiece

    folder = plain("t5")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    text = folder / "text.txt"
    text.write_text("\n".join(f"Question: what is it? Options: (A) red (B) blue Solution: two words {n}" for n in range(400)))
    prefix, ids = str(folder / "spiece"), {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=prefix, vocab_size=80, minloglevel=2, **ids)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    _, processor = load_processor(section(folder, vision_features="vit", vision_encoder=str(eye)))
    ids = processor.tokenizer("Question: <what>")["input_ids"]
    assert ids[-1] == 1 and 2 in ids, "no `<`, and an end"


@pytest.mark.slow
def test_a_second_epoch_spends_next_to_nothing_on_vision(make_recipe, make_base, tmp_path, monkeypatch):
    """Under 2 % of its time, workers aside; nothing is computed after the first look at each image."""
    spent, computed = [], []
    real, compute = VisionFeatures.of, VisionFeatures._compute

    def timed(self, *given):
        begin = time.perf_counter()
        found = real(self, *given)
        spent.append((begin, time.perf_counter() - begin))
        return found

    monkeypatch.setattr(VisionFeatures, "of", timed)
    monkeypatch.setattr(VisionFeatures, "_compute", lambda *given: computed.append(time.perf_counter()) or compute(*given))
    keys = ("training.max_steps=-1", "training.num_train_epochs=2", "training.per_device_train_batch_size=16", "data.eval=[]")
    recipe = make_recipe(tmp_path, f"model.base={make_base('t5_vision')}", *keys, "data.train.0.limit=320")
    train(recipe, tmp_path)
    looks = spent[-320:]  # one a sample: of the second epoch
    share = sum(seconds for _, seconds in looks) / (looks[-1][0] - looks[0][0])
    print(f"share of the second epoch that went into vision features: {share:.2%}")
    assert share < 0.02 and max(computed, default=0.0) < looks[0][0]
