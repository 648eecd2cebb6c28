"""More of anything never takes less memory, and what a phase holds is what its items say."""

import pytest
import torch

from lora_cot.engines.local import PREFILL_TOKENS
from lora_cot.formats import FORMATS
from lora_cot.planning.estimate import DRIVER, GAPS_GPU, OPTIMIZER_BYTES, estimate, simulate
from lora_cot.planning.outline import outline
from lora_cot.planning.steps import training_step
from lora_cot.planning.workload import Workload
from lora_cot.recipe.schema import SearchSection


def total(recipe, gpu=True):
    """An estimate of a recipe, on a GPU."""
    return estimate(recipe, simulate(recipe, gpu), None if gpu else 1e9)


def step(recipe, work=None, **changes):
    """Bytes of a training step without gradients."""
    work = work or Workload(150, 60, 150, 60, ((64, 64),), None, "")
    sizes = {f"training.{key}": value for key, value in changes.items()}
    made = recipe(*(f"{key}={value}" for key, value in sizes.items()))
    found = training_step(outline(made, made.model.base, torch.bfloat16, torch.bfloat16), made, work, gpu=True)
    return sum(size for owner, size in found.items() if owner != "gradients")


@pytest.fixture
def recipe(make_recipe, tmp_path):
    """The tiny recipe with some keys changed."""
    return lambda *options, **sections: make_recipe(tmp_path, *options, **sections)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_linear_in_the_batch(recipe, checkpointing):
    """Twice the rows, twice the bytes."""
    sizes = [step(recipe, per_device_train_batch_size=rows, gradient_checkpointing=checkpointing) for rows in (4, 8, 16)]
    assert (sizes[2] - sizes[1]) == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.05)
    assert sizes[2] == pytest.approx(2 * sizes[1], rel=0.05)


@pytest.mark.slow
def test_longer_samples_more_images_and_no_checkpointing_take_more(recipe):
    """Each by itself."""
    plain = step(recipe, gradient_checkpointing=True)
    assert step(recipe, Workload(300, 60, 300, 60, ((64, 64),), None, ""), gradient_checkpointing=True) > plain
    assert step(recipe, Workload(150, 90, 150, 90, ((64, 64),), None, ""), gradient_checkpointing=True) >= plain
    assert step(recipe, Workload(150, 60, 150, 60, ((64, 64),) * 3, None, ""), gradient_checkpointing=True) > plain
    assert step(recipe, gradient_checkpointing=False) > plain


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (["lora.r=4"], ["lora.r=32"]),
        (["training.optim=adamw_8bit"], ["training.optim=adamw_torch"]),
        pytest.param(["training.optim=sgd"], ["training.optim=lion_8bit"], marks=pytest.mark.slow),
        pytest.param(["training.bf16=true"], ["training.bf16=false"], marks=pytest.mark.slow),
        (["lora.parts=[language_model]"], ["lora.parts=[language_model,vision_encoder]"]),
        (["quantization.load_in_4bit=true"], ["quantization.load_in_4bit=false", "quantization.load_in_8bit=true"]),
        pytest.param(["quantization.load_in_4bit=true"], ["quantization=null"], marks=pytest.mark.slow),
        pytest.param(
            ["quantization.skip_parts=[lm_head]"],
            ["quantization.skip_parts=[lm_head,vision_encoder,projector]"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda options: options[0],
)
def test_more_takes_more(recipe, less, more):
    """In every phase; and of all, in the fullest."""
    small, large = total(recipe(*less)), total(recipe(*more))
    assert all(one.low <= other.low for one, other in zip(small.phases, large.phases, strict=True))
    assert small.low < large.low and small.high < large.high


def test_half_precision_is_what_autocast_gives(recipe):
    """fp16 casts adapters as bf16 does; without either nothing is cast, and a CPU never casts."""
    for options, gpu, cast in (
        ([], True, True),
        (["training.fp16=true"], True, True),
        (["training.bf16=false"], True, False),
        ([], False, False),
    ):
        found = total(recipe(*options), gpu)
        training = next(phase for phase in found.phases if phase.name == "training")
        assert found.made.cast is cast
        assert ("adapter, cast" in {item.what for item in training.items}) is cast


def test_phases_hold_what_they_should(recipe):
    """Trained weights in float32, the optimizer's state, gradients: each where it is, and nowhere else."""
    with_evaluation = recipe("training.eval_strategy=steps", "training.eval_steps=2", "training.optim=adamw_torch")
    found = total(with_evaluation)
    phases = {phase.name: {item.what: item.size for item in phase.items} for phase in found.phases}
    assert list(phases) == ["loading", "training", "evaluating", "answering"]
    trained = found.made.trained
    assert phases["training"]["adapter"] == phases["answering"]["adapter"] == 4 * trained
    assert phases["training"]["optimizer"] == phases["evaluating"]["optimizer"] == 8 * trained
    assert "optimizer" not in phases["answering"] and "adapter" not in phases["loading"]
    assert "gradients" not in phases["evaluating"]
    assert {item.what for item in found.always} == {"vision_encoder", "projector", "language_model", "lm_head"}
    assert [phase.name for phase in total(recipe()).phases] == ["loading", "training", "answering"]


def test_the_interval_leaves_room_for_the_allocator(recipe):
    """A tenth of what comes and goes, and the driver; a CPU has no driver, but a process."""
    found = total(recipe())
    for phase in found.phases:
        passing = sum(item.size for item in phase.items if item.kind == "passing")
        assert phase.high(gpu=True) == pytest.approx(phase.low + GAPS_GPU * passing + DRIVER)
        assert 0 < passing < phase.low
    on_cpu = total(recipe(), gpu=False)
    assert on_cpu.low > 1e9 and all("process" in {item.what for item in phase.items} for phase in on_cpu.phases)
    assert on_cpu.high < on_cpu.low + DRIVER


def test_answers_take_what_their_texts_take(recipe):
    """Keys and values of all candidates at their full length, or a prompt's reading, whichever is more."""
    made = simulate(recipe(), gpu=True)

    def answering(*options, **search):
        changed = recipe(*options).model_copy(update={"search": SearchSection(**search)})
        phase = estimate(changed, made).phases[-1]
        return phase.items[-1].what, phase.items[-1].size

    texts = {"strategy": "stage_beam", "stages": {name: {"max_new_tokens": 500} for name in ("SUMMARY", "CAPTION")}}
    what, four = answering("evaluation.batch_size=2", candidates=4, **texts)
    assert what == "keys and values"
    assert answering("evaluation.batch_size=4", candidates=4, **texts)[1] == pytest.approx(2 * four)
    assert four / 2 < answering("evaluation.batch_size=2", candidates=2, **texts)[1] < four
    assert answering("evaluation.batch_size=2", candidates=4)[1] == answering("evaluation.batch_size=2", candidates=9)[1]
    others = sum(stage.max_new_tokens for stage in FORMATS["four_stage"].stages if stage.name in ("REASONING", "CONCLUSION"))
    assert four == made.reader.cache(2, 4, 2 * 500 + others)
    one_stage = {"SUMMARY": {"candidates": 9}}
    assert answering("evaluation.batch_size=2", strategy="stage_beam", stages=one_stage)[1] > four / 4 * 8
    short = {name: {"max_new_tokens": 1} for name in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")}
    assert answering("evaluation.batch_size=3", stages=short) == ("reading prompts", 3 * made.reader.reading)
    together = PREFILL_TOKENS // made.reader.prompt
    kept = made.reader.cache(7, 0, 0)
    what, size = answering(f"evaluation.batch_size={together + 7}", stages=short)
    assert (what, size) == ("reading prompts", together * made.reader.reading + kept)


def test_optimizers_are_those_of_transformers():
    """A name that transformers does not know would be looked up in vain."""
    from transformers.training_args import OptimizerNames

    assert set(OPTIMIZER_BYTES) <= {name.value for name in OptimizerNames}


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "rmsprop", "adagrad", "adafactor"])
def test_optimizers_keep_what_is_said(optim):
    """Bytes of state after a step, for each parameter of a layer of usual shape."""
    from transformers import TrainingArguments
    from transformers.trainer import Trainer

    layer = torch.nn.Linear(512, 16, bias=False)
    arguments = TrainingArguments(output_dir="unused", optim=optim, report_to="none", use_cpu=True)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, layer)
    optimizer = kind(layer.parameters(), **options)
    layer(torch.ones(1, 512)).sum().backward()
    optimizer.step()
    kept = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    assert sum(t.nbytes for t in kept) / layer.weight.numel() == pytest.approx(OPTIMIZER_BYTES[optim], abs=0.2)
