"""Keys of LoraConfig do what they say: on the modules, in the optimizer, and in what is saved."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lora_cot.adapters.lora import attach
from lora_cot.backbones import part_of
from lora_cot.backbones.loading import load_backbone
from lora_cot.checkpoints.opening import open_model
from lora_cot.data.collate import batch, encode, model_inputs
from lora_cot.data.shapes import make_sample
from lora_cot.errors import AdapterError
from lora_cot.formats import FORMATS
from lora_cot.recipe.model import ModelSection
from lora_cot.recipe.schema import LoraSection, QuantizationSection
from lora_cot.training import run as training
from lora_cot.training.optimizer import set_learning_rates
from lora_cot.training.run import train
from lora_cot.training.trainer import CotTrainer

NF4 = QuantizationSection(load_in_4bit=True)
ALL_PARTS = ("vision_encoder", "projector", "language_model")


@pytest.fixture
def load(make_base):
    """A fresh copy of a tiny base, quantised or not."""
    return lambda name="llava", quantization=None: load_backbone(ModelSection(base=str(make_base(name))), quantization)


def adapted(backbone):
    """{path: (rank, alpha / rank)} of the layers that have an adapter, from the modules themselves."""
    found = {}
    for name, module in backbone.base_model.named_modules():
        if len(getattr(module, "lora_A", ())):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            assert a.shape[0] == b.shape[1] and a.shape[1] == module.in_features and b.shape[0] == module.out_features
            found[name] = a.shape[0], module.scaling["default"]
    return found


def by_part(backbone):
    """{part: the different (rank, scale) of its layers}."""
    found = {}
    for name, settings in adapted(backbone).items():
        found.setdefault(part_of(backbone.family, name), set()).add(settings)
    return found


def trained(backbone, without=("lora_A", "lora_B")):
    """Names of trained parameters that are not LoRA's two matrices."""
    names = [name for name, p in backbone.base_model.named_parameters() if p.requires_grad]
    return [name for name in names if not any(f".{part}." in name for part in without)]


def logits_of(backbone):
    """Logits on two training samples."""
    encoder = backbone.encoder(FORMATS["four_stage"])
    rows = [encode(encoder, make_sample(i, "train", 0), True) for i in range(2)]
    inputs = model_inputs(batch(rows, backbone.processor, backbone.family.image_inputs))
    backbone.model.eval()
    with torch.no_grad():
        return backbone.model(**inputs).logits


# parts with settings of their own


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "mllama"])
def test_a_part_has_its_own_rank_and_alpha(load, name):
    """They reach every layer of the part, and none of a part that lies inside it; others have the section's."""
    parts = {"vision_encoder": {"r": 2}, "projector": {"r": 4, "lora_alpha": 6}, "language_model": {}}
    backbone = attach(load(name), LoraSection(r=8, lora_alpha=16, parts=parts))
    assert by_part(backbone) == {"vision_encoder": {(2, 8.0)}, "projector": {(4, 1.5)}, "language_model": {(8, 2.0)}}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"vision_encoder": {"r": 2}, "projector": {}}, {"vision_encoder": {(2, 8.0)}, "projector": {(8, 2.0)}}),
        ({"projector": {"r": 2}, "vision_encoder": {}}, {"vision_encoder": {(8, 2.0)}, "projector": {(2, 8.0)}}),
        ({"vision_encoder": {"lora_alpha": 4}}, {"vision_encoder": {(8, 0.5)}}),
        ({"projector": {"lora_alpha": 4}}, {"projector": {(8, 0.5)}}),
        ({"projector": {"r": 8, "lora_alpha": 16}, "vision_encoder": {}}, {part: {(8, 2.0)} for part in ALL_PARTS[:2]}),
    ],
    ids=str,
)
def test_a_part_inside_another_is_told_apart(load, parts, expected):
    """Qwen's projector lies inside its vision encoder: either can have settings of its own, in any order."""
    assert by_part(attach(load("qwen2_vl"), LoraSection(r=8, lora_alpha=16, parts=parts))) == expected


def test_an_own_rank_pattern_reaches_peft(load):
    """A recipe's rank_pattern and alpha_pattern name layers as PEFT's do."""
    section = LoraSection(r=8, lora_alpha=16, rank_pattern={"q_proj": 3}, alpha_pattern={"layers.0.self_attn.q_proj": 6})
    found = adapted(attach(load(), section))
    assert {name.split("layers.")[1]: settings for name, settings in found.items() if settings != (8, 2.0)} == {
        "0.self_attn.q_proj": (3, 2.0),
        "1.self_attn.q_proj": (3, 16 / 3),
    }


def test_an_own_rank_pattern_is_finer_than_a_part(load):
    """Beside parts with ranks of their own it still decides for the layers that it names."""
    parts = {"projector": {"r": 4}, "language_model": {}}
    found = adapted(attach(load(), LoraSection(r=8, lora_alpha=16, parts=parts, rank_pattern={"q_proj": 3})))
    assert {name.rsplit(".", 1)[-1] for name, (rank, _) in found.items() if rank == 3} == {"q_proj"}


# keys that pass through


def test_dora_has_magnitudes(load):
    """`use_dora` gives every adapted layer a vector that is trained."""
    backbone = attach(load(), LoraSection(r=4, use_dora=True))
    assert {name.split(".lora_")[0] for name in trained(backbone)} == adapted(backbone).keys()
    assert all("lora_magnitude_vector" in name for name in trained(backbone))


def test_rslora_scales_by_the_root_of_the_rank(load):
    """`use_rslora` scales each part by its own alpha over the root of its own rank."""
    parts = {"projector": {"r": 16}, "language_model": {"lora_alpha": 3}}
    found = by_part(attach(load(), LoraSection(r=4, lora_alpha=8, use_rslora=True, parts=parts)))
    assert found == {"projector": {(16, 8 / 16**0.5)}, "language_model": {(4, 3 / 4**0.5)}}


@pytest.mark.parametrize("quantization", [None, NF4], ids=["full", "nf4"])
@pytest.mark.parametrize("module", ["lm_head", "embed_tokens", "multi_modal_projector", "multi_modal_projector.linear_1"])
def test_modules_to_save_are_trained_in_full(load, module, quantization):
    """A copy of the module is trained, all of its parameters, and nothing else of the base."""
    plain = load()
    (whole,) = [found for name, found in plain.model.named_modules() if f".{name}".endswith(f".{module}")]
    backbone = attach(load(quantization=quantization), LoraSection(r=4, modules_to_save=[module]))
    names = trained(backbone)
    assert len(names) == len(list(whole.parameters())) > 0
    assert all(f".{module}.modules_to_save.default." in f".{name}" for name in names)


def test_trainable_token_indices_reach_the_embedding(load):
    """Rows of the embedding that are named are trained, no other."""
    backbone = attach(load(), LoraSection(r=4, trainable_token_indices=[5, 7, 9]))
    (name,) = trained(backbone)
    assert "embed_tokens.token_adapter.trainable_tokens_delta" in name
    assert dict(backbone.base_model.named_parameters())[name].shape == (3, 64)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"modules_to_save": ["lm_heads"]}, r"lora\.modules_to_save · no module is called 'lm_heads' · did you mean 'lm_he"),
        ({"modules_to_save": ["model"]}, "'model' is quantised and cannot be trained in full · name its part in quantization"),
        ({"modules_to_save": ["q_proj"]}, "'q_proj' is quantised and cannot be trained in full · name its part in quant"),
        ({"init_lora_weights": "pissa"}, "pissa rewrites the base's weights, .* · set it to true, or drop the section quant"),
        ({"init_lora_weights": "olora"}, "olora rewrites the base's weights, .* · set it to true, or drop the section quant"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 rewrites the base's weights"),
        ({"exclude_modules": ".*"}, "lora · All modules were excluded"),
    ],
    ids=str,
)
def test_what_a_quantised_base_cannot_do_is_refused(load, keys, match):
    """The key is named with a remedy, before anything is trained."""
    with pytest.raises(AdapterError, match=match):
        attach(load(quantization=NF4), LoraSection(**keys))


def test_all_that_cannot_be_done_is_refused_together(load):
    """Every key and every name is a problem of its own."""
    with pytest.raises(AdapterError) as caught:
        attach(load(quantization=NF4), LoraSection(init_lora_weights="olora", modules_to_save=["nothing", "up_proj", "norm"]))
    wheres = [problem.where for problem in caught.value.problems]
    assert wheres == [*["lora.init_lora_weights"] * 2, *["lora.modules_to_save"] * 2]


def test_an_empty_list_of_layers_is_not_all_of_them(load):
    """LoRA on nothing is refused, in the recipe or on the base."""
    with pytest.raises((AdapterError, ValueError)):
        attach(load(), LoraSection(r=4, target_modules=[]))


# what is saved


@pytest.fixture
def trained_run(make_recipe, tmp_path, monkeypatch):
    """(folder of a run of three steps on the full-precision base, the trained model's logits before it was saved)."""
    seen, save = [], training.save_adapter

    def save_and_look(backbone, *args, **keys):
        seen.append(logits_of(backbone))
        save(backbone, *args, **keys)

    def run(*overrides):
        monkeypatch.setattr(training, "save_adapter", save_and_look)
        options = ("data.eval=[]", "training.max_steps=3", *overrides)
        return train(make_recipe(tmp_path, *options, quantization=None), tmp_path), seen[-1]

    return run


@pytest.mark.parametrize(
    "keys",
    [
        "use_dora=true",
        pytest.param("use_rslora=true", marks=pytest.mark.slow),
        pytest.param("modules_to_save=[lm_head]", marks=pytest.mark.slow),
        "modules_to_save=[embed_tokens]",
        "trainable_token_indices=[5, 6]",
        "parts={projector: {r: 2}, language_model: {lora_alpha: 3}}",
    ],
)
def test_what_was_trained_is_what_is_opened(trained_run, tiny, keys):
    """Whatever was trained beside LoRA's matrices is saved with them, and loaded again."""
    folder, logits = trained_run(f"lora.{keys}")
    torch.testing.assert_close(logits_of(open_model(str(folder)).backbone), logits)
    assert (logits - logits_of(tiny)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("weights", "more", "ranks"),
    [
        ("pissa", "r=4", {4}),
        pytest.param("pissa_niter_2", "use_rslora=true", {4}, marks=pytest.mark.slow),
        pytest.param("olora", "r=4", {4}, marks=pytest.mark.slow),
        pytest.param("pissa", "parts={projector: {r: 2}, language_model: {lora_alpha: 3}}", {2, 4}, marks=pytest.mark.slow),
        ("olora", "parts={projector: {r: 2}, language_model: {lora_alpha: 3}}", {2, 4}),
    ],
)
def test_a_rewritten_base_is_not_needed_afterwards(trained_run, tiny, weights, more, ranks):
    """What is saved is plain LoRA of twice the rank, and gives the trained model on the original base."""
    folder, logits = trained_run(f"lora.init_lora_weights={weights}", f"lora.{more}")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    opened = open_model(str(folder)).backbone
    torch.testing.assert_close(logits_of(opened), logits, atol=1e-5, rtol=1e-4)
    assert (logits - logits_of(tiny)).abs().max() > 0.1
    with opened.model.disable_adapter():
        torch.testing.assert_close(logits_of(opened), logits_of(tiny))
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {tensor.shape[0] for name, tensor in saved.items() if "lora_A" in name} == {2 * rank for rank in ranks}


@pytest.mark.parametrize(
    "more",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [5, 6]},
        {"use_rslora": True, "parts": {"projector": {"r": 2}, "language_model": {}}},
    ],
    ids=str,
)
def test_what_cannot_be_saved_as_lora_is_refused_first(trained_run, more):
    """Beside an initialisation that rewrites the base: either refused before training, or saved whole."""
    try:
        folder, logits = trained_run("lora.init_lora_weights=pissa", *(f"lora.{key}={more[key]}" for key in more))
    except AdapterError:
        return
    torch.testing.assert_close(logits_of(open_model(str(folder)).backbone), logits, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_each_pass_of_a_split_format_begins_on_the_original_base(trained_run, tiny, monkeypatch):
    """The second adapter is plain LoRA on the original base too, not on what the first one made of it."""
    folder, logits = trained_run("lora.init_lora_weights=pissa", "format.name=two_stage", "search.stages={}")
    opened = open_model(str(folder)).backbone
    second = opened.for_pass("answer")
    second.use_adapter()
    torch.testing.assert_close(logits_of(second), logits, atol=1e-5, rtol=1e-4)


# learning rates


def rates(optimizer, backbone):
    """{parameter's name: its learning rate}, each parameter in one group alone."""
    names = {id(p): name for name, p in backbone.base_model.named_parameters()}
    found = [(names[id(p)], group["lr"]) for group in optimizer.param_groups for p in group["params"]]
    assert len(found) == len(dict(found))
    assert dict(found).keys() == {names[id(p)] for p in backbone.model.parameters() if p.requires_grad}
    return dict(found)


def expected_rates(backbone, own, ratio):
    """What the recipe asks for, by the parameters' names."""
    names = [name for name, p in backbone.base_model.named_parameters() if p.requires_grad]
    part = {name: own.get(part_of(backbone.family, name), 0.1) for name in names}
    return {name: rate * (ratio if ".lora_B." in name else 1) for name, rate in part.items()}


SETTINGS = {
    "plain": ({}, None),
    "LoRA+": ({}, 16.0),
    "parts": ({"vision_encoder": 0.03, "projector": 0.5}, None),
    "both": ({"projector": 0.5, "language_model": 0.2}, 4.0),
}
each_setting = pytest.mark.parametrize(("own", "ratio"), SETTINGS.values(), ids=SETTINGS)


@each_setting
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_every_parameter_has_its_learning_rate(load, name, own, ratio):
    """By part and by matrix; everything else about its group stays, and each is in one group alone."""
    parts = {part: {"learning_rate": own.get(part)} for part in ALL_PARTS}
    section = LoraSection(r=2, parts=parts, loraplus_lr_ratio=ratio, modules_to_save=["lm_head"], use_dora=True)
    backbone = attach(load(name), section)
    weights = [p for p in backbone.model.parameters() if p.requires_grad]
    decay = {True: 0.3, False: 0.0}
    groups = [{"params": [p for p in weights if (p.dim() > 1) == kind], "weight_decay": decay[kind]} for kind in decay]
    optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.5, 0.6))
    set_learning_rates(optimizer, backbone, section)
    assert rates(optimizer, backbone) == pytest.approx(expected_rates(backbone, own, ratio or 1))
    for group in optimizer.param_groups:
        assert {group["weight_decay"]} == {decay[p.dim() > 1] for p in group["params"]} and group["betas"] == (0.5, 0.6)


@each_setting
def test_a_trainers_optimizer_has_them(make_recipe, tmp_path, monkeypatch, own, ratio):
    """The optimizer that a run steps with has the recipe's learning rates from its first step on."""
    seen = []

    class BuiltError(Exception):
        pass

    def build(trainer, **_):
        trainer.create_optimizer()
        optimizer = trainer.create_optimizer()
        trainer.create_scheduler(num_training_steps=4, optimizer=optimizer)
        seen.append((optimizer, trainer._backbone))
        raise BuiltError

    monkeypatch.setattr(CotTrainer, "train", build)
    parts = {part: {"learning_rate": own.get(part)} for part in ALL_PARTS}
    lora = {"r": 2, "parts": parts, "loraplus_lr_ratio": ratio}
    options = ("training.learning_rate=0.1", "training.lr_scheduler_type=constant", "data.eval=[]")
    with pytest.raises(BuiltError):
        train(make_recipe(tmp_path, *options, lora=lora), tmp_path)
    ((optimizer, backbone),) = seen
    assert rates(optimizer, backbone) == pytest.approx(expected_rates(backbone, own, ratio or 1))


def test_a_part_with_a_tiny_learning_rate_hardly_moves(make_recipe, tmp_path):
    """Steps are taken with the rates that the groups have, also under a schedule."""
    lora = {"r": 4, "parts": {"projector": {"learning_rate": 1e-9}, "language_model": {}}}
    options = ("data.eval=[]", "training.lr_scheduler_type=cosine", "training.warmup_steps=1")
    weights = load_file(train(make_recipe(tmp_path, *options, lora=lora), tmp_path) / "adapter/adapter_model.safetensors")
    moved = {part: max(float(t.abs().max()) for n, t in weights.items() if part in n and "lora_B" in n) for part in PATHS}
    assert moved["multi_modal_projector"] < 1e-7 < 1e-3 < moved["language_model"]


PATHS = ("multi_modal_projector", "language_model")
