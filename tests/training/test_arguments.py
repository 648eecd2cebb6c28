"""What a recipe asks for and its base cannot do is said before weights are loaded."""

import pytest

from lora_cot.backbones import FAMILIES
from lora_cot.errors import RecipeError
from lora_cot.formats import FORMATS
from lora_cot.training import run as training
from lora_cot.training import samples
from lora_cot.training.arguments import sft_config
from lora_cot.training.run import train

TWO_STAGE = FORMATS["two_stage"]


@pytest.fixture
def arguments(make_recipe, tmp_path):
    """The SFTConfig of a recipe with overrides, on a family, for a format."""

    def make(*overrides, family="llava", cot_format=FORMATS["four_stage"]):
        return sft_config(make_recipe(tmp_path, *overrides), tmp_path / "out", FAMILIES[family], cot_format)

    return make


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_float16_is_refused_where_it_breaks(make_recipe, make_base, tmp_path, monkeypatch, name):
    """Before anything is loaded, with the reason and what to set instead; the folder is free again."""
    monkeypatch.setattr(training, "load_backbone", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(samples, "load_counted", lambda *_: pytest.fail("read"))
    recipe = make_recipe(tmp_path, f"model.base={make_base(name)}", "training.fp16=true")
    reason = r"cannot be trained in float16: its activations exceed .* NaN"
    with pytest.raises(RecipeError, match=rf"training\.fp16 · a qwen2_vl model {reason} · set training\.bf16: true"):
        train(recipe, tmp_path)
    assert not (tmp_path / "tiny" / ".owner").exists()


def test_float16_is_allowed_elsewhere(arguments):
    """A family that has no trouble with it keeps what was asked."""
    config = arguments("training.fp16=true")
    assert (config.fp16, config.bf16) == (True, False)


@pytest.fixture
def precision(make_recipe, tmp_path, monkeypatch):
    """(bf16, fp16) of a recipe with overrides on a machine that has a GPU or not, with bfloat16 or without."""

    def find(*overrides, cuda=True, bfloat16=True, family="llava"):
        recipe, seen = make_recipe(tmp_path, *overrides), {}
        monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: bfloat16 or including_emulation)
        monkeypatch.setattr("trl.SFTConfig", lambda **keys: seen.update(keys))
        sft_config(recipe, tmp_path / "out", FAMILIES[family], FORMATS["four_stage"])
        return seen["bf16"], seen["fp16"]

    return find


@pytest.mark.parametrize(
    ("cuda", "bfloat16", "family", "expected"),
    [
        (True, True, "llava", (True, False)),
        (True, False, "llava", (False, True)),
        (True, False, "qwen2_vl", (False, False)),
        (False, False, "llava", (False, False)),
    ],
)
def test_precision_is_what_the_machine_and_the_base_can(precision, cuda, bfloat16, family, expected):
    """bfloat16 where the GPU has it, else float16 where the base bears it, else neither."""
    assert precision(cuda=cuda, bfloat16=bfloat16, family=family) == expected


@pytest.mark.parametrize(
    ("key", "bfloat16", "expected"),
    [
        ("fp16=true", True, (False, True)),
        ("bf16=true", False, (True, False)),
        ("bf16=false", True, (False, False)),
        ("fp16=false", False, (False, False)),
    ],
)
def test_a_precision_that_is_asked_for_is_the_only_one(precision, key, bfloat16, expected):
    """What the recipe says takes the place of what would be chosen for the machine."""
    assert precision(f"training.{key}", bfloat16=bfloat16) == expected


@pytest.mark.parametrize(
    ("metric", "cot_format", "expected"),
    [
        ("accuracy", FORMATS["four_stage"], ("accuracy", True)),
        ("eval_loss", FORMATS["four_stage"], ("eval_loss", False)),
        ("accuracy", TWO_STAGE.passes[1], ("accuracy", True)),
        ("accuracy", TWO_STAGE.passes[0], ("loss", False)),
        ("eval_accuracy", TWO_STAGE.passes[0], ("loss", False)),
        ("loss", TWO_STAGE.passes[0], ("loss", False)),
        ("format_validity", TWO_STAGE.passes[0], ("format_validity", True)),
    ],
    ids=str,
)
def test_the_best_checkpoint_is_judged_by_what_a_pass_has(arguments, metric, cot_format, expected):
    """A pass without the answer has no accuracy: its loss decides. A loss is better lower, anything else higher."""
    options = ("training.eval_strategy=steps", f"training.metric_for_best_model={metric}")
    config = arguments(*options, cot_format=cot_format)
    assert (config.metric_for_best_model, config.greater_is_better) == expected


def test_several_gpus_in_one_process_are_refused(make_recipe, tmp_path, monkeypatch):
    """The trainer would spread one batch over them with `DataParallel`, which none of the families bears."""
    recipe = make_recipe(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("trl.SFTConfig", lambda **keys: None)
    with pytest.raises(RecipeError, match=r"2 GPUs are visible to one process · use `accelerate launch train\.py RECIPE`"):
        sft_config(recipe, tmp_path / "out", FAMILIES["llava"], FORMATS["four_stage"])


def test_what_trl_would_cut_is_left_whole(arguments):
    """A limit on length is the collator's: TRL gets none, and no preparation of its own."""
    config = arguments("training.max_length=100")
    assert config.max_length is None and config.dataset_kwargs == {"skip_prepare_dataset": True}
    assert not config.remove_unused_columns


@pytest.mark.parametrize("key", ["split_batches", "dispatch_batches"])
def test_batches_are_not_split_by_accelerate(arguments, key):
    """They are made for each rank already: the key is refused, others of its section are not."""
    with pytest.raises(RecipeError, match=rf"training\.accelerator_config · {key}: .* · take it out"):
        arguments(f"training.accelerator_config={{{key}: true}}")
    assert arguments("training.accelerator_config={use_seedable_sampler: true}").accelerator_config.split_batches is False


def test_mistakes_are_reported_together(arguments):
    """Ours and the library's own, in its words."""
    with pytest.raises(RecipeError) as caught:
        arguments(
            "training.fp16=true", "training.early_stopping_patience=2", "training.eval_strategy=epochs", family="qwen2_vl"
        )
    where = [problem.where for problem in caught.value.problems]
    assert where == ["training.early_stopping_patience"] * 2 + ["training.fp16", "training"]
    assert "epochs" in str(caught.value)
