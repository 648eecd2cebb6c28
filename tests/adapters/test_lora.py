"""Adapters go where the recipe says and nowhere else, and are watched while they learn."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from lora_cot.adapters.liveness import Liveness
from lora_cot.adapters.lora import attach, load_adapter, report, target_paths
from lora_cot.backbones import FAMILIES, part_of
from lora_cot.backbones.loading import load_backbone
from lora_cot.backbones.quantization import quantized_parts
from lora_cot.data.collate import batch, encode
from lora_cot.data.shapes import make_sample
from lora_cot.engines.local import LocalEngine
from lora_cot.errors import AdapterError, BackboneError, TrainingError
from lora_cot.formats import FORMATS
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import LoraSection, QuantizationSection
from tests.conftest import TRAINED_CHAT

NF4 = QuantizationSection(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


@pytest.fixture
def load(tiny_base):
    """A fresh copy of the tiny base, quantised or not."""
    return lambda quantization=None: load_backbone(ModelSection(base=str(tiny_base)), quantization)


@pytest.fixture(params=TRAINED_CHAT)
def load_each(request, make_base):
    """A fresh copy of a tiny base of each kind, quantised or not, in a precision."""
    return lambda quantization=None, dtype="auto": load_backbone(
        ModelSection(base=str(make_base(request.param)), dtype=dtype), quantization
    )


def output_of(backbone):
    """Loss and logits of two training samples."""
    encoder = backbone.encoder(FORMATS["four_stage"])
    rows = [encode(encoder, make_sample(i, "train", 0), True) for i in range(2)]
    inputs = batch(rows, backbone.processor, backbone.family.image_inputs)
    inputs.pop("stage_ids")
    return backbone.model(**backbone.place(inputs))


def loss_of(backbone):
    """Training loss of two samples."""
    return output_of(backbone).loss


@pytest.mark.crossed
@pytest.mark.parametrize("parts", [["language_model"], ["projector"], ["vision_encoder", "language_model"]], ids="+".join)
@pytest.mark.parametrize("quantization", [None, NF4], ids=["full", "nf4"])
def test_only_the_named_parts_are_adapted_and_learn(load_each, parts, quantization):
    """Adapters and gradients are in the named parts alone; the base itself is frozen."""
    backbone = attach(load_each(quantization), LoraSection(r=4, parts=parts))
    loss_of(backbone).backward()
    for name, parameter in backbone.base_model.named_parameters():
        adapted = "lora_" in name and part_of(backbone.family, name) in parts
        assert parameter.requires_grad == adapted
        assert ("lora_B" in name and adapted) == (parameter.grad is not None and bool(parameter.grad.any()))
    lines = {line.part: line for line in report(backbone)}
    assert {part for part, line in lines.items() if line.adapted} == set(parts)
    assert {part for part, line in lines.items() if line.trained} == set(parts)


OWNERS = {"merger.": "projector", "multi_modal_projector": "projector"}
OWNERS |= {"visual.": "vision_encoder", "vision_tower.": "vision_encoder", "vision_model.": "vision_encoder"}
OWNERS |= {"language_model.": "language_model"}
"""Part by what occurs in a layer's path, first match first: Qwen's merger lies inside its vision encoder."""


@pytest.mark.crossed
@pytest.mark.parametrize("part", ["projector", "vision_encoder", "language_model"])
def test_a_part_is_adapted_in_all_of_its_linear_layers(load_each, part):
    """A part is its own layers, all of them, and none of a part that lies inside it."""
    base = load_each()
    linear = [name for name, module in base.model.named_modules() if isinstance(module, torch.nn.Linear)]
    expected = {name for name in linear if next((own for mark, own in OWNERS.items() if mark in name), None) == part}
    backbone = attach(base, LoraSection(r=4, parts=[part]))
    trained = {name.split(".lora_")[0] for name, p in backbone.base_model.named_parameters() if p.requires_grad}
    assert expected and trained == expected


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_part_is_a_path_and_not_the_beginning_of_one(family):
    """A module belongs to a part if it is the part's module or inside it; the innermost part counts."""
    rest = next((part for part, path in family.parts.items() if not path), None)
    for part, path in family.parts.items():
        assert part_of(family, path) == part_of(family, f"{path}.0.fc1") == part
        assert part_of(family, f"{path}_norm") != part or part == rest
    assert part_of(family, "") == part_of(family, "other") == rest


@pytest.mark.crossed
@pytest.mark.parametrize("quantization", [None, NF4], ids=["full", "nf4"])
def test_a_fresh_adapter_changes_nothing(load_each, quantization):
    """At the start the adapted model is the base, logit for logit."""
    backbone = load_each(quantization)
    backbone.model.requires_grad_(False)  # as an adapter has it: torch sums in another order where a weight is trained
    with torch.no_grad():
        before = output_of(backbone).logits
        parts = ["vision_encoder", "projector", "language_model"]
        after = output_of(attach(backbone, LoraSection(r=4, parts=parts))).logits
    torch.testing.assert_close(after, before, atol=0, rtol=0)


def test_answering_before_training_takes_no_gradient_away(load_each):
    """A quantised model that generated something trains on the same gradients as one that did not."""
    gradients = []
    for answers_first in (False, True):
        base = load_each(NF4)
        torch.manual_seed(0)  # after the base, which is built where no test asked for it before
        backbone = attach(base, LoraSection(r=4))
        if answers_first:
            LocalEngine(backbone, FORMATS["direct"]).start([make_sample(0, "train", 0)])
        backbone.model.train()
        loss_of(backbone).backward()
        gradients.append({n: p.grad for n, p in backbone.model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.crossed
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantised_are_exactly_the_layers_that_should_be(load_each, dtype):
    """NF4 reaches the language model's layers; embeddings and all other parts have the precision that the table says."""
    full, backbone = load_each(dtype=dtype), load_each(NF4, dtype)
    counts = quantized_parts(backbone.model, backbone.family)
    layers = [module for module in full.part("language_model").modules() if isinstance(module, torch.nn.Linear)]
    assert counts.pop("language_model") == len(layers) >= 14 and not any(counts.values())
    lines = {line.part: line for line in report(attach(backbone, LoraSection(r=4)))}
    whole = {part: line.precision for part, line in lines.items() if part != "language_model"}
    assert set(whole.values()) == {dtype} and whole.keys() >= {"vision_encoder", "projector", "lm_head"}
    for part in ("vision_encoder", "projector", "lm_head"):
        assert {parameter.dtype for parameter in backbone.part(part).parameters()} == {getattr(torch, dtype)}
    assert backbone.base_model.get_input_embeddings().weight.dtype == getattr(torch, dtype)
    assert lines["language_model"].precision == f"{dtype}/nf4"
    sizes = {line.part: line.parameters for line in report(full)}
    assert sizes == {part: line.parameters for part, line in lines.items()}, "quantised weights are counted in full"
    assert sum(sizes.values()) == sum(parameter.numel() for parameter in full.model.parameters())


def test_a_part_can_be_quantised_on_request(load):
    """skip_parts decides; a section that quantises nothing is refused."""
    counts = quantized_parts(load(NF4.model_copy(update={"skip_parts": ["lm_head"]})).model, load().family)
    assert counts["vision_encoder"] and counts["projector"] and not counts["lm_head"]
    nothing = {"skip_parts": ["language_model", "vision_encoder", "projector", "lm_head"]}
    with pytest.raises(BackboneError, match="no layer was quantised"):
        load(NF4.model_copy(update=nothing))


def test_leaf_names_that_do_not_exist_are_named(load):
    """target_modules that match nothing are an error with the nearest name; those that exist narrow the parts."""
    with pytest.raises(AdapterError, match=r"called 'q_project' · did you mean 'q_proj'\?"):
        attach(load(), LoraSection(target_modules=["q_project", "v_proj"]))
    lines = {line.part: line for line in report(attach(load(), LoraSection(r=4, target_modules=["q_proj", "v_proj"])))}
    assert lines["language_model"].adapted == 4 and lines["vision_encoder"].adapted == 0


def test_an_adapter_comes_back_from_its_folder(load, tmp_path):
    """Saved and loaded, the adapter gives the same model; it can go on training."""
    backbone = attach(load(), LoraSection(r=4))
    for name, parameter in backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    backbone.model.save_pretrained(tmp_path)
    again = load_adapter(load(), tmp_path, trainable=True)
    assert loss_of(again).item() == pytest.approx(loss_of(backbone).item(), abs=1e-6)
    assert sum(p.requires_grad for p in again.model.parameters()) == 28
    with pytest.raises(AdapterError, match=r"no adapter_config\.json here"):
        load_adapter(load(), tmp_path / "nothing")


@pytest.mark.parametrize("trained", [False, True])
def test_a_tied_weight_counts_once(trained):
    """In what is trained too."""
    model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    model.requires_grad_(trained)
    family = SimpleNamespace(parts={"language_model": ""})
    (line,) = report(SimpleNamespace(base_model=model, family=family))
    assert (line.trained, line.parameters) == (15 * trained, 15)


def test_what_gets_no_gradient_is_named(load):
    """A layer that takes no part in the loss is found; one that does is not."""
    backbone = attach(load(), LoraSection(r=4, target_modules=["q_proj"]))
    layers = backbone.base_model.get_submodule("model.language_model.layers")
    alive = Liveness(backbone.model)
    loss_of(backbone).backward()
    alive.check()
    dead = Liveness(backbone.model)
    layers[1].self_attn.q_proj.forward = lambda x: x.detach() @ torch.zeros(64, 64)
    loss_of(backbone).backward()
    with pytest.raises(TrainingError, match=r"1 trained tensors got no gradient: .*layers\.1\.self_attn\.q_proj"):
        dead.check()


def test_a_base_that_is_no_vision_model_is_refused(tmp_path):
    """Only the families of this package are loaded; the error names them and what was found."""
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(BackboneError, match=r"type 'gpt2' is not a vision-language model .* allowed: llava"):
        load_backbone(ModelSection(base=str(tmp_path)))
    (tmp_path / "config.json").unlink()
    with pytest.raises(BackboneError, match=r"no config\.json"):
        load_backbone(ModelSection(base=str(tmp_path)))
    with pytest.raises(BackboneError, match="neither a folder nor a hub id"):
        load_backbone(ModelSection(base="nobody/nothing"))
    with pytest.raises(BackboneError, match=r"no miniature base 'mini/lava' · did you mean 'llava'\?"):
        load_backbone(ModelSection(base="mini/lava"))


def test_layers_whose_output_is_unused_get_no_adapter(make_base, tmp_path):
    """LLaVA-1.5 takes the last but one layer of its tower: an adapter on the last would be dead."""
    folder = tmp_path / "base"
    shutil.copytree(make_base("llava"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vision_feature_layer": -2}))
    backbone = load_backbone(ModelSection(base=str(folder)))
    paths = target_paths(backbone, LoraSection(parts=["vision_encoder"]))
    assert {path.split("layers.")[1][0] for path in paths if "layers." in path} == {"0"}


def test_every_part_is_adapted_somewhere(load_tiny):
    """A part that the named layers leave without an adapter is an error, not a part less."""
    with pytest.raises(AdapterError, match=r"lora.parts · projector has no linear layer that is adapted"):
        target_paths(load_tiny("llava"), LoraSection(parts=["language_model", "projector"], target_modules=["q_proj"]))


def test_adapters_of_a_float16_base_are_float32(tiny_base):
    """A gradient of a float16 parameter cannot be unscaled, and its smallest steps would be lost."""
    backbone = attach(load_backbone(ModelSection(base=str(tiny_base), dtype="float16")), LoraSection())
    trained = [parameter for parameter in backbone.model.parameters() if parameter.requires_grad]
    assert trained and {parameter.dtype for parameter in trained} == {torch.float32}
    assert backbone.part("language_model").embed_tokens.weight.dtype == torch.float16
