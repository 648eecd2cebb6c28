"""DeepSpeed by one path: where its configuration comes from, and what is refused before anything is loaded."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from lora_cot.backbones import FAMILIES
from lora_cot.errors import RecipeError, TrainingError
from lora_cot.training import sharding
from lora_cot.training.arguments import sft_config
from lora_cot.training.sharding_limits import deepspeed_keys, stored
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))
SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Tests are started by no launcher, whatever starts them."""
    for name in (sharding.FLAG, sharding.FILE, sharding.STAGE, "LOCAL_RANK", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def problems(make_recipe, tmp_path):
    """What stands against a run, as text."""

    def find(*overrides, config="zero2", **sections):
        given = f"training.deepspeed={ROOT / 'ds_configs' / f'{config}.json'}"
        recipe = make_recipe(tmp_path, given, *overrides, **sections)
        return "\n".join(map(str, deepspeed_keys(recipe, FAMILIES["llava"])[1]))

    return find


def test_there_is_a_configuration_for_each_stage():
    """Those that `plan` speaks of."""
    assert {path.stem for path in CONFIGS} == {"zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_recipe_is_the_only_source_of_sizes(path):
    """Sizes and precision are auto; stage and offload are what the name says; nothing is left to DeepSpeed's defaults."""
    config = json.loads(path.read_text())
    assert {config[key] for key in SIZES} == {"auto"}
    assert config["bf16"] == config["fp16"] == {"enabled": "auto"}
    assert all(value == "auto" for key, value in config["zero_optimization"].items() if key.endswith(("size", "threshold")))
    assert sharding.stage_of(config) == int(path.stem[4])
    assert sharding.offloads(config) == path.stem.endswith("offload")
    assert not {"optimizer", "scheduler"} & config.keys()
    assert not config.get("zero_force_ds_cpu_optimizer")


def test_both_ways_lead_to_one_configuration(make_recipe, tmp_path, monkeypatch):
    """A file in the recipe, the mapping itself, a file that was launched with, or the same file in both."""
    path = ROOT / "ds_configs" / "zero3.json"
    by_recipe = make_recipe(tmp_path, f"training.deepspeed={path}")
    (tmp_path / "own").mkdir()
    as_mapping = make_recipe(tmp_path / "own", f"training.deepspeed={path.read_text()}")
    plain = make_recipe(tmp_path)
    assert not sharding.is_wanted(plain) and deepspeed_keys(plain, FAMILIES["llava"]) == ({}, [])
    expected = sharding.read_config(by_recipe)
    assert sharding.read_config(as_mapping) == expected
    monkeypatch.setenv(sharding.FLAG, "true")
    assert sharding.is_wanted(plain)
    assert sharding.read_config(by_recipe) == expected, "launched without a configuration: the recipe's"
    monkeypatch.setenv(sharding.FILE, str(path))
    assert sharding.read_config(plain) == sharding.read_config(by_recipe) == expected
    monkeypatch.setenv(sharding.FILE, str(ROOT / "ds_configs" / "zero2.json"))
    with pytest.raises(RecipeError, match="launched with another DeepSpeed configuration · give it in one"):
        sharding.read_config(by_recipe)


def test_a_stage_alone_is_a_configuration(make_recipe, tmp_path, monkeypatch):
    """`--use_deepspeed --zero_stage 3 --offload_param_device cpu`; and Accelerate's own default."""
    recipe = make_recipe(tmp_path)
    monkeypatch.setenv(sharding.FLAG, "true")
    assert sharding.stage_of(sharding.read_config(recipe)) == 2
    monkeypatch.setenv(sharding.STAGE, "3")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu")
    config = sharding.read_config(recipe)
    assert sharding.stage_of(config) == 3 and sharding.offloads(config)
    assert {config[key] for key in SIZES} == {"auto"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("stage: 2", "is not JSON"),
        ("{}", "no zero_optimization of stage 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 0}}', "no zero_optimization of stage 1, 2 or 3"),
        (
            '{"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam"}}',
            "the recipe is the only .*training.optim",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_with_the_rest(make_recipe, tmp_path, text, said):
    """Together with the recipe's other mistakes, each with its remedy."""
    path = tmp_path / "own.json"
    if text is not None:
        path.write_text(text)
    recipe = make_recipe(tmp_path, f"training.deepspeed={path}", "training.early_stopping_patience=2")
    with pytest.raises(RecipeError, match=said) as caught:
        sft_config(recipe, tmp_path, FAMILIES["llava"], recipe.format.build())
    assert "early_stopping_patience" in str(caught.value)


def test_what_a_configuration_leaves_out_comes_from_the_recipe(make_recipe, tmp_path):
    """DeepSpeed itself would not clip, and would compute in float32."""
    path = tmp_path / "own.json"
    path.write_text('{"zero_optimization": {"stage": 2}}')
    config = sharding.read_config(make_recipe(tmp_path, f"training.deepspeed={path}"))
    assert {config[key] for key in SIZES} == {"auto"} and config["bf16"] == {"enabled": "auto"}


def test_one_precision_for_all(make_recipe, tmp_path, problems):
    """The engine's is the base's, and a recipe that says otherwise is told how to."""
    path = f"training.deepspeed={ROOT / 'ds_configs' / 'zero2.json'}"
    for dtype, bf16 in (("float32", False), ("bfloat16", True)):
        keys, found = deepspeed_keys(make_recipe(tmp_path, path, f"model.dtype={dtype}"), FAMILIES["llava"])
        assert not found and (keys["bf16"], keys["fp16"]) == (bf16, False)
    assert "training.bf16 · true, where the base is in float32" in problems("training.bf16=true")
    assert "set model.dtype to bfloat16" in problems("training.bf16=true")
    assert "training.bf16 · false, where the base is in bfloat16" in problems("training.bf16=false", "model.dtype=bfloat16")


def test_t5_is_not_computed_in_float16(make_recipe, make_base, tmp_path):
    """Nor by DeepSpeed."""
    overrides = (f"training.deepspeed={CONFIGS[0]}", f"model.base={make_base('t5_vision')}", "model.dtype=float16")
    (problem,) = deepspeed_keys(make_recipe(tmp_path, *overrides), FAMILIES["t5_vision"])[1]
    assert "breaks in float16" in str(problem) and "bfloat16" in str(problem)


def test_packed_weights_are_stored_as_the_base_computes(make_recipe, tmp_path, problems):
    """Numbers of another type would be cast to nonsense or left whole."""
    recipe = make_recipe(tmp_path, f"training.deepspeed={CONFIGS[0]}", "model.dtype=bfloat16")
    assert stored(recipe, FAMILIES["llava"]).library["bnb_4bit_quant_storage"] == "bfloat16"
    plain = make_recipe(tmp_path)
    assert stored(plain, FAMILIES["llava"]) == plain.quantization
    for wrong in ("uint8", "bfloat16"):
        assert f"quant_storage · {wrong}, where the base is in float32" in problems(
            f"quantization.bnb_4bit_quant_storage={wrong}"
        )
    assert not problems("quantization.bnb_4bit_quant_storage=float32")


INT8 = {"quantization": {"load_in_8bit": True}}
TABLE = [
    (
        "zero2_offload",
        ("training.optim=paged_adamw_32bit",),
        {},
        "training.optim · paged_adamw_32bit .*set training.optim",
    ),
    ("zero3_offload", ("training.optim=adamw_bnb_8bit",), {}, "training.optim"),
    ("zero3", (), INT8, "load_in_8bit · ZeRO-3 cannot split .* load_in_4bit"),
    ("zero3", ("lora.init_lora_weights=pissa",), {}, "init_lora_weights · pissa rewrites .*zero2"),
    ("zero3", ("lora.init_lora_weights=olora",), {}, "init_lora_weights"),
    ("zero3", ("lora.use_dora=true",), {}, "use_dora · .* drop the section quantization"),
    ("zero3", ("lora.trainable_token_indices=[3]",), {}, "trainable_token_indices · .*zero2"),
    ("zero1", ("training.torch_compile=true",), {}, "torch_compile"),
]


@pytest.mark.parametrize(("config", "overrides", "sections", "said"), TABLE, ids=[f"{row[0]}-{row[3][:24]}" for row in TABLE])
def test_what_cannot_go_together_is_refused(problems, config, overrides, sections, said):
    """Before anything is loaded, with the way that works; and only there."""
    found = problems(*overrides, config=config, **sections)
    assert re.search(said, found) and "\n" not in found


def test_what_goes_together_is_not_refused(problems):
    """What the table refuses elsewhere."""
    assert not problems("training.optim=paged_adamw_32bit")
    assert not problems("lora.init_lora_weights=pissa", quantization=None)
    assert not problems("lora.use_dora=true", config="zero3", quantization=None)
    assert not problems(config="zero2", **INT8)
    assert not problems(config="zero3_offload")


def test_sharding_by_fsdp_is_refused(make_recipe, tmp_path, monkeypatch):
    """It would look fine and save a share."""
    recipe = make_recipe(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match=r"FSDP: answers, .*zero3\.json"):
        sft_config(recipe, tmp_path, FAMILIES["llava"], recipe.format.build())


def test_deepspeed_needs_its_package_and_a_launcher(make_recipe, tmp_path, monkeypatch):
    """Each is one sentence that says what to do."""
    recipe = make_recipe(tmp_path, f"training.deepspeed={CONFIGS[0]}")
    monkeypatch.setattr(sharding.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"not installed · pip install 'lora_cot\[deepspeed\]'"), sharding.processes(recipe):
        pass
    monkeypatch.setattr(sharding.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RecipeError, match="use `accelerate launch --use_deepspeed"), sharding.processes(recipe):
        pass


def test_a_run_that_only_looks_like_deepspeed_is_stopped():
    """The model as plain data parallelism wraps it, and an engine of another stage."""
    pytest.importorskip("deepspeed")
    config = {"zero_optimization": {"stage": 2}}
    trainer = SimpleNamespace(
        model_wrapped=torch.nn.Linear(1, 1), accelerator=SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
    )
    with pytest.raises(TrainingError, match="asked for ZeRO-2, got Linear on MULTI_CPU, which looks like it and is not"):
        sharding.EngineCheck(trainer, config).on_train_begin(None, None, None)
