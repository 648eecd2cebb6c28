"""The streamed merge is PEFT's own, for every family and every kind of adapter, in files that look like the base's."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from lora_cot.backbones import FAMILIES
from lora_cot.errors import AdapterError, BackboneError, MergeError
from lora_cot.merging import arithmetic, stream
from lora_cot.merging.base import read_base
from lora_cot.merging.deltas import read_adapter
from lora_cot.merging.plan import make_plan
from tests.conftest import TRAINED
from tests.merging.conftest import layers_of, layout, make_adapter, merge_files, rewrite, state_of, tensors_of

KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True, "r": 6},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"v_proj": 2, "q": 3}, "alpha_pattern": {"q_proj": 32, "v": 3}},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [1, 5, 9]}},
    "bias": {"bias": "lora_only", "use_rslora": True},
    "embedding": {"target_modules": r".*language_model\.embed_tokens", "use_dora": True},
}


def keys_of(name, kind):
    keys = {"target_modules": layers_of(name), **KINDS[kind]}
    if name == "t5_vision":
        keys["modules_to_save"] = [*keys.get("modules_to_save", ()), "encoder.fusion"]
        if kind == "tokens":
            keys["trainable_token_indices"] = {"shared": [1, 5, 9]}
    return keys


def assert_same(merged, folder, tolerance=1e-5):
    found = state_of(folder)
    assert found.keys() == merged.keys()
    for name, tensor in merged.items():
        assert (found[name] - tensor).abs().max() <= tolerance, name


@pytest.mark.crossed
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAINED)
def test_it_is_pefts_own_merge(make_base, tmp_path, name, kind):
    """Equal to 1e-5, whatever the family and the kind of adapter."""
    if (name, kind) == ("t5_vision", "embedding"):
        pytest.skip("T5's embeddings are four modules of one weight: PEFT's merge changes all, its adapter only one")
    base = make_base(name)
    peft = make_adapter(base, tmp_path / "adapter", **keys_of(name, kind))
    before = state_of(base)
    merged = peft.merge_and_unload(safe_merge=True).state_dict()
    folder = merge_files(base, tmp_path / "adapter", tmp_path / "merged")
    assert_same(merged, folder)
    assert any((before[key] - merged[key]).abs().max() > 1e-2 for key in merged)
    assert layout(folder) == layout(base) or name == "t5_vision"


@pytest.mark.parametrize("name", TRAINED)
def test_published_names_are_kept(published, tmp_path, name):
    """Files, names, order, types and metadata are the base's; transformers loads the sums from them."""
    base = published(name)
    merged = make_adapter(base, tmp_path / "adapter", **keys_of(name, "lora")).merge_and_unload(safe_merge=True).state_dict()
    folder = merge_files(base, tmp_path / "adapter", tmp_path / "merged")
    assert layout(folder) == layout(base)
    assert (folder / stream.INDEX).read_bytes() == (base / stream.INDEX).read_bytes()
    assert_same(merged, folder)
    old, new = tensors_of(base), tensors_of(folder)
    changed = [key for key in old if not torch.equal(old[key], new[key])]
    assert changed and len(changed) < len(old)


@pytest.mark.parametrize("name", TRAINED)
def test_names_of_modules_are_understood(make_base, tmp_path, name):
    """A checkpoint may name its tensors as transformers 5 names its modules."""
    base = rewrite(make_base(name), tmp_path / "base", {}, shards=2)
    merged = make_adapter(base, tmp_path / "adapter", **keys_of(name, "dora")).merge_and_unload(safe_merge=True).state_dict()
    assert_same(merged, merge_files(base, tmp_path / "adapter", tmp_path / "merged"))


def test_transformers_alone_loads_it(published, tmp_path):
    """Model and processor, from the base's own files."""
    base = published("llava")
    make_adapter(base, tmp_path / "adapter", **keys_of("llava", "lora"))
    folder = merge_files(base, tmp_path / "adapter", tmp_path / "merged")
    AutoModelForImageTextToText.from_pretrained(folder)
    AutoProcessor.from_pretrained(folder)
    assert (folder / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_a_sum_is_rounded_once(published, tmp_path):
    """Of a base in bfloat16: the sum in float32, then its nearest bfloat16."""
    base = rewrite(published("llava"), tmp_path / "base", {}, change=lambda _, tensor: tensor.bfloat16())
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    make_adapter(base, tmp_path / "adapter", **keys_of("llava", "lora"))
    old, new = tensors_of(base), tensors_of(merge_files(base, tmp_path / "adapter", tmp_path / "merged"))
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "model.language_model.layers.0.self_attn.q_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
    exact = old[f"{name}.weight"].double() + 2.0 * b.double() @ a.double()
    assert new[f"{name}.weight"].dtype == torch.bfloat16
    assert (new[f"{name}.weight"].float() != exact.float().bfloat16().float()).float().mean() < 1e-3


@pytest.mark.parametrize("block", [1, 100, 1000])
def test_blocks_of_any_size_give_the_same(published, tmp_path, monkeypatch, block):
    """A tensor that is larger than a block is cut into rows."""
    keys = {"use_dora": True, "trainable_token_indices": {"embed_tokens": [0, 3, 400]}}
    base = published("qwen2_vl")
    peft = make_adapter(base, tmp_path / "adapter", target_modules=layers_of("qwen2_vl"), **keys)
    merged = peft.merge_and_unload(safe_merge=True).state_dict()
    monkeypatch.setattr(arithmetic, "BLOCK", block)
    monkeypatch.setattr(stream, "CHUNK", 777)
    assert_same(merged, merge_files(base, tmp_path / "adapter", tmp_path / "merged"))


def test_bytes_are_copied_where_the_system_cannot(published, tmp_path, monkeypatch):
    """Another file system, or one without such a call."""
    base = published("llava")
    make_adapter(base, tmp_path / "adapter", **keys_of("llava", "lora"))
    first = tensors_of(merge_files(base, tmp_path / "adapter", tmp_path / "first"))

    def refuse(*arguments):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(stream, "BUFFER", 1000)
    second = tensors_of(merge_files(base, tmp_path / "adapter", tmp_path / "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("use_dora", [False, True])
def test_layers_that_keep_their_weight_turned(tmp_path, use_dora):
    """GPT-2's layers hold (in, out): PEFT's fan_in_fan_out."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=64))
    model.save_pretrained(tmp_path / "base")
    with torch.device("meta"):
        empty = GPT2LMHeadModel(model.config)
    base = read_base(tmp_path / "base", empty, FAMILIES["llava"])
    keys = {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True, "use_dora": use_dora}
    merged = make_adapter(None, tmp_path / "adapter", model=model, **keys).merge_and_unload(safe_merge=True).state_dict()
    stream.write_weights(make_plan(base, read_adapter(tmp_path / "adapter", empty)), tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert all((found[name] - merged[parameter]).abs().max() < 1e-5 for name, parameter in base.parameters.items())


def tied_base(make_base, tmp_path, name="qwen2_vl"):
    """A base whose head is its embedding."""
    model = AutoModelForImageTextToText.from_pretrained(make_base(name))
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    rewrite(make_base(name), tmp_path / "base", {})
    for path in (tmp_path / "base").glob("*.safetensors*"):
        path.unlink()
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def logits_of(model):
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize(
    ("keys", "unties"),
    [
        ({"target_modules": r".*language_model.*(q|v)_proj"}, False),
        ({"target_modules": r".*q_proj", "trainable_token_indices": {"embed_tokens": [2, 7, 11]}}, False),
        ({"target_modules": r".*q_proj|lm_head"}, True),
        ({"target_modules": r".*q_proj", "modules_to_save": ["lm_head"]}, True),
        ({"target_modules": r".*q_proj", "modules_to_save": ["embed_tokens"]}, True),
        ({"target_modules": r".*q_proj", "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False),
        ({"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, False),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tied_weights(make_base, tmp_path, keys, unties):
    """A head that differs from its embedding becomes a tensor of its own; the merged model is the adapter's either way."""
    base = tied_base(make_base, tmp_path)
    assert not [name for name in tensors_of(base) if "lm_head" in name]
    wanted = logits_of(make_adapter(base, tmp_path / "adapter", **keys))
    folder = merge_files(base, tmp_path / "adapter", tmp_path / "merged")
    config = AutoConfig.from_pretrained(folder)
    assert config.tie_word_embeddings is (not unties)
    assert bool([name for name in tensors_of(folder) if "lm_head" in name]) is unties
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (logits_of(model) - wanted).abs().max() < 1e-5
    assert (logits_of(AutoModelForImageTextToText.from_pretrained(base)) - wanted).abs().max() > 1e-3


def test_two_tensors_of_one_weight(make_base, tmp_path):
    """A base may hold its head beside the embedding it is tied to: engines that go by the configuration are told."""
    base = tied_base(make_base, tmp_path)
    (file,) = base.glob("*.safetensors")
    state = load_file(file)
    name = next(name for name in state if name.endswith("embed_tokens.weight"))
    save_file({**state, "lm_head.weight": state[name].clone()}, file, {"format": "pt"})
    wanted = logits_of(make_adapter(base, tmp_path / "adapter", target_modules=r".*q_proj", modules_to_save=["lm_head"]))
    folder = merge_files(base, tmp_path / "adapter", tmp_path / "merged")
    assert layout(folder) == layout(base)
    assert AutoConfig.from_pretrained(folder).tie_word_embeddings is False
    assert (logits_of(AutoModelForImageTextToText.from_pretrained(folder)) - wanted).abs().max() < 1e-5


def test_added_tensors_are_in_the_index(make_base, tmp_path):
    """Of a base in several files, the new head lies in the file of what it was tied to."""
    tied = tied_base(make_base, tmp_path / "one")
    base = rewrite(tied, tmp_path / "base", {}, shards=2)
    make_adapter(base, tmp_path / "adapter", target_modules=r".*q_proj", modules_to_save=["lm_head"])
    folder = merge_files(base, tmp_path / "adapter", tmp_path / "merged")
    index = json.loads((folder / stream.INDEX).read_text())["weight_map"]
    assert index["lm_head.weight"] == index["model.language_model.embed_tokens.weight"]
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


def test_a_plain_t5_gets_its_fusion(make_base, tmp_path):
    """The fusion of a T5 that was plain goes along, in its own precision, and the configuration says that it sees."""
    base = rewrite(make_base("t5_vision"), tmp_path / "seeing", {}, shards=1)
    old = json.loads((base / "config.json").read_text())
    plain = {key: value for key, value in old.items() if "vision" not in key and "image" not in key}
    plain |= {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    (base / "config.json").write_text(json.dumps(plain))
    weights = {name: tensor for name, tensor in tensors_of(base).items() if "fusion" not in name}
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})
    for path in [*base.glob("model-*"), base / stream.INDEX]:
        path.unlink()
    keys = {"vision_features": old["vision_features"], "vision_encoder": str(base / "vision_encoder")}
    from lora_cot.backbones.loading import load_backbone
    from lora_cot.recipe.model import ModelSection

    backbone = load_backbone(ModelSection(base=str(base), dtype="float32", **keys))
    peft = make_adapter(base, tmp_path / "adapter", model=backbone.model, **keys_of("t5_vision", "lora"))
    merged = peft.merge_and_unload(safe_merge=True).state_dict()
    folder = merge_files(base, tmp_path / "adapter", tmp_path / "merged", model=keys)
    found = state_of(folder)
    assert found.keys() == merged.keys()
    assert all((found[name].float() - merged[name]).abs().max() < 2e-2 for name in merged)
    fusion = [name for name in merged if "fusion" in name]
    assert fusion and all(torch.equal(found[name], merged[name]) and found[name].dtype == torch.float32 for name in fusion)
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("t5_vision", ["T5VisionForConditionalGeneration"])
    assert (folder / "vision_encoder" / "model.safetensors").is_file()


def spoil(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def test_what_fits_nowhere_is_refused(published, tmp_path):
    """Nothing of an adapter is dropped without a word."""
    base, adapter = published("llava"), tmp_path / "adapter"
    make_adapter(base, adapter, **keys_of("llava", "lora"))
    first = next(iter(load_file(adapter / "adapter_model.safetensors")))
    spoil(adapter, lambda state: state | {first.replace("layers.0", "layers.77"): state[first].clone()})
    with pytest.raises(AdapterError, match=r"layers\.77.*belongs to no layer of the base"):
        merge_files(base, adapter, tmp_path / "merged")
    spoil(adapter, lambda state: {name: tensor for name, tensor in state.items() if "layers.77" not in name and name != first})
    with pytest.raises(AdapterError, match=r"it lacks 1 tensors.*lora_A"):
        merge_files(base, adapter, tmp_path / "merged")
    spoil(adapter, lambda state: state | {first: torch.zeros(4, 7)})
    with pytest.raises(AdapterError, match=r"does not fit the base's .* F32 \[64, 128\]"):
        merge_files(base, adapter, tmp_path / "merged")
    spoil(adapter, lambda state: state | {first: torch.full((4, 128), float("inf"))})
    with pytest.raises(MergeError, match=r"not finite: base_model"):
        merge_files(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_sum_that_is_too_large_is_refused(published, tmp_path):
    """Finite values whose product is not."""
    make_adapter(published("llava"), tmp_path / "adapter", **keys_of("llava", "lora"))
    spoil(tmp_path / "adapter", lambda state: {name: tensor.sign() * 1e20 for name, tensor in state.items()})
    with pytest.raises(MergeError, match=r"the merged tensor .* holds values that are not finite"):
        merge_files(published("llava"), tmp_path / "adapter", tmp_path / "merged")


def test_bases_that_cannot_be_read(published, tmp_path):
    """Pickled, quantised, cut off: each with its remedy."""
    base = tmp_path / "base"
    rewrite(published("llava"), base, {}, shards=1)
    make_adapter(base, tmp_path / "adapter", **keys_of("llava", "lora"))
    (file,) = base.glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(BackboneError, match="cut off"):
        merge_files(base, tmp_path / "adapter", tmp_path / "merged")
    file.write_bytes(whole)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(BackboneError, match=r"saved quantised \(bitsandbytes\) · name the original"):
        merge_files(base, tmp_path / "adapter", tmp_path / "merged")
    (base / "config.json").write_text(json.dumps(config))
    file.rename(base / "pytorch_model.bin")
    (base / stream.INDEX).unlink()
    with pytest.raises(BackboneError, match=r"pickled .* save it anew"):
        merge_files(base, tmp_path / "adapter", tmp_path / "merged")
