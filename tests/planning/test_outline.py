"""A model without weights has the bytes and the adapters of the one that training loads."""

import pytest
import torch

from lora_cot.adapters.lora import attach, report
from lora_cot.backbones import part_of
from lora_cot.backbones.loading import load_backbone
from lora_cot.errors import AdapterError, BackboneError, RecipeError
from lora_cot.planning.estimate import simulate, weights
from lora_cot.planning.outline import configuration, largest_block, outline

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
KINDS = {
    "float32": (None, "float32"),
    "bfloat16": (None, "bfloat16"),
    "nf4": (NF4, "bfloat16"),
    "nf4, nested": ({**NF4, "bnb_4bit_use_double_quant": True}, "bfloat16"),
    "fp4, all but the head": ({**NF4, "bnb_4bit_quant_type": "fp4", "skip_parts": ["lm_head"]}, "float32"),
    "int8": ({"load_in_8bit": True}, "float32"),
}


def changed(make_recipe, tmp_path, base, kind, *options):
    """A recipe on a base in one of the kinds of weights."""
    quantization, dtype = KINDS[kind]
    return make_recipe(tmp_path, f"model.dtype={dtype}", f"model.base={base}", *options, quantization=quantization)


def outlined(recipe, dtype=None):
    return outline(recipe, str(recipe.model.base), dtype or getattr(torch, recipe.model.dtype), torch.float32)


def real_bytes(backbone):
    """Bytes by part of a loaded model's frozen tensors, with what quantisation keeps for each block of a weight."""
    sizes, seen = {}, set()
    for name, parameter in backbone.base_model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        beside = [parameter.SCB] if getattr(parameter, "SCB", None) is not None else []
        beside += [state.absmax, *([state.state2.absmax] if state.nested else [])] if state else []
        part = part_of(backbone.family, name) or "other"
        if not parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            sizes[part] = sizes.get(part, 0) + sum(tensor.nbytes for tensor in (parameter.data, *beside))
    return sizes


def by_part(items):
    """Bytes by part, whatever their precision."""
    sizes = {}
    for item in items:
        sizes[item.what] = sizes.get(item.what, 0) + item.size
    return sizes


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_the_loaded_model(make_recipe, make_base, tmp_path, kind):
    """To the byte, part by part, in every precision; and the same parameters are trained."""
    recipe = changed(make_recipe, tmp_path, make_base("llava"), kind, "lora.parts=[projector,language_model]")
    real, made = attach(load_backbone(recipe.model, recipe.quantization), recipe.lora), outlined(recipe)
    assert by_part(weights(made)) == real_bytes(real)
    assert report(made) == report(real)


def test_every_architecture_has_its_weights(make_recipe, tmp_path, each_base):
    """Tied heads, cross-attention, vision towers of all kinds."""
    parts = "[language_model]" if each_base.name == "t5_vision" else "[vision_encoder,language_model]"
    recipe = changed(make_recipe, tmp_path, each_base, "nf4, nested", f"lora.parts={parts}")
    real, made = attach(load_backbone(recipe.model, recipe.quantization), recipe.lora), outlined(recipe)
    assert by_part(weights(made)) == real_bytes(real)
    assert report(made) == report(real)
    assert {item.detail for item in weights(made) if item.what == "language_model"} >= {"4-bit"}


def test_four_bits_take_less_than_eight_and_these_than_sixteen(make_recipe, make_base, tmp_path):
    """And a nested quantisation takes less than a plain one."""
    base = make_base("mllama")
    sizes = {}
    for kind in ("nf4, nested", "nf4", "int8", "bfloat16", "float32"):
        recipe = changed(make_recipe, tmp_path, base, kind)
        sizes[kind] = sum(item.size for item in weights(outlined(recipe, torch.bfloat16 if "32" not in kind else None)))
    assert list(sizes.values()) == sorted(sizes.values()) and len(set(sizes.values())) == 5


def test_tied_weights_count_once(make_recipe, tmp_path):
    """Qwen2-VL-2B's head is its embedding."""
    recipe = make_recipe(tmp_path, "model.base=Qwen/Qwen2-VL-2B-Instruct", "model.dtype=bfloat16", quantization=None)
    made = outline(recipe, configuration(recipe), torch.bfloat16, torch.bfloat16)
    assert sum(item.size for item in weights(made)) == 2 * 2_208_985_600


def test_what_an_adapter_begins_with_takes_no_memory(make_recipe, tmp_path):
    """PiSSA decomposes weights, which an outline does not have."""
    plain, pissa = (make_recipe(tmp_path, "quantization=null", f"lora.init_lora_weights={how}") for how in (True, "pissa"))
    assert report(outlined(pissa)) == report(outlined(plain))


def test_nothing_is_on_a_real_device(make_recipe, tmp_path):
    """All of an outline is on the meta device, quantised or not."""
    made = outlined(make_recipe(tmp_path))
    assert {tensor.device.type for tensor in [*made.model.parameters(), *made.model.buffers()]} == {"meta"}


def test_the_largest_block_is_a_layer_of_the_language_model(make_recipe, tmp_path):
    """What ZeRO-3 gathers at once, at least; adapters count."""
    made = outlined(make_recipe(tmp_path, "quantization=null"))
    layer = made.part("language_model").layers[0]
    assert largest_block(made.base_model) == sum(p.nbytes for p in layer.parameters())


def test_the_largest_weight_is_there_twice_while_loading(make_recipe, tmp_path):
    """In full precision, while it is quantised; none is without quantisation."""
    quantized, plain = make_recipe(tmp_path), make_recipe(tmp_path, "quantization=null")
    made = simulate(quantized, gpu=False)
    layers = [layer for layer in outlined(plain).part("language_model").modules() if isinstance(layer, torch.nn.Linear)]
    assert made.largest_quantized == max(4 * layer.weight.numel() for layer in layers if "lora" not in str(type(layer)))
    assert simulate(plain, gpu=False).largest_quantized == 0


def test_a_base_is_looked_for_here_first(make_recipe, tmp_path, tiny_base):
    """A folder is itself; a published base comes with the package, whoever's copy it is; what is unknown stays as it is."""
    assert configuration(make_recipe(tmp_path)) == str(tiny_base)
    found = configuration(make_recipe(tmp_path, "model.base=llava-hf/llava-1.5-7b-hf"))
    assert found.endswith("published/llava-1.5-7b-hf")
    assert configuration(make_recipe(tmp_path, "model.base=somebody/something")) == "somebody/something"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["lora.target_modules=[q_prj]"], AdapterError, "q_proj"),
        (["model.base=mini/lava"], BackboneError, "did you mean 'llava'"),
        (["quantization.bnb_4bit_use_double_qant=true"], RecipeError, "bnb_4bit_use_double_qant"),
    ],
)
def test_what_training_refuses_is_refused(make_recipe, tmp_path, options, error, message):
    """By the same code, in the same words."""
    with pytest.raises(error, match=message):
        simulate(make_recipe(tmp_path, *options), gpu=False)


def test_planning_leaves_nothing_behind(make_recipe, make_base, tmp_path, monkeypatch):
    """A model can be loaded and quantised in the process that planned one first: bitsandbytes keeps its first code book."""
    from bitsandbytes import functional

    monkeypatch.setattr(functional, "name2qmap", {})
    recipe = changed(make_recipe, tmp_path, make_base("llava"), "nf4, nested")
    outlined(recipe)
    weight = load_backbone(recipe.model, recipe.quantization).model.model.language_model.layers[0].mlp.up_proj.weight
    assert weight.quant_state.nested and weight.quant_state.state2.code.device.type == "cpu"
