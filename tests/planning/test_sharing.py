"""What several GPUs hold: sharing never costs, and what is offloaded is in the host's memory."""

from itertools import pairwise

import pytest

from lora_cot.planning.estimate import estimate, simulate
from lora_cot.planning.sharing import ADAM_ON_HOST, GPUS, STAGES, shares

SETTINGS = {
    "nf4": {},
    "nf4 as bfloat16": {"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"},
    "int8": {"load_in_8bit": True},
    "bfloat16": None,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory, tiny_base):
    """(estimate, share by GPUs and stage) of a kind of weights."""
    from lora_cot.recipe import Recipe

    kept = {}

    def find(kind):
        if kind not in kept:
            keys = {"optim": "adamw_torch", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
            values = {"name": "t", "model": {"base": str(tiny_base), "dtype": "bfloat16"}, "training": keys}
            section = SETTINGS[kind] if SETTINGS[kind] != {} else {"load_in_4bit": True}
            recipe = Recipe.model_validate({**values, "quantization": section, "lora": {"r": 8}})
            whole = estimate(recipe, simulate(recipe, gpu=True))
            kept[kind] = whole, {(share.gpus, share.stage): share for share in shares(recipe, whole)}
        return kept[kind]

    return find


@pytest.fixture(params=SETTINGS)
def each(request, found):
    """One test for each kind of weights."""
    return found(request.param)


def training(whole):
    return next(phase for phase in whole.phases if phase.name == "training")


def sizes(whole):
    """Bytes of what may be shared."""
    items = {item.what: item.size for item in training(whole).items if item.what in ("optimizer", "gradients")}
    items["weights"] = sum(item.size for item in training(whole).items if item.what in whole.made.parameters)
    return items


def test_one_gpu_alone_is_training_as_it_is(each):
    """And so is every number of GPUs where each holds everything."""
    whole, shared = each
    assert set(shared) == {(gpus, stage) for gpus in GPUS for stage in STAGES}
    for gpus in GPUS:
        alone = shared[gpus, "none"]
        assert (alone.low, alone.high, alone.host) == pytest.approx((training(whole).low, training(whole).high(True), 0))


def test_more_gpus_never_need_more(each):
    """Nor does a higher stage, on a GPU; nor an offloaded one than that stage itself."""
    _, shared = each
    for stage in STAGES:
        lows = [shared[gpus, stage].low for gpus in GPUS]
        assert lows == sorted(lows, reverse=True)
    for gpus in GPUS:
        lows = [shared[gpus, stage].low for stage in ("none", "zero1", "zero2", "zero3", "zero3_offload")]
        assert all(more >= less - 1e-6 for more, less in pairwise(lows))
        assert shared[gpus, "zero2_offload"].low <= shared[gpus, "zero2"].low
        assert all(share.high > share.low for share in shared.values())


def test_each_stage_shares_what_it_is_named_for(found):
    """1 the optimizer, 2 gradients too, 3 weights and adapters too."""
    whole, shared = found("bfloat16")
    part, low = sizes(whole), {stage: shared[4, stage].low for stage in STAGES}
    assert low["none"] - low["zero1"] == pytest.approx(0.75 * part["optimizer"])
    assert low["zero1"] - low["zero2"] == pytest.approx(0.75 * part["gradients"])
    adapters = sum(item.size for item in training(whole).items if item.what.startswith("adapter"))
    gathered = min(0.75 * part["weights"], 2 * whole.made.block)
    assert low["zero2"] - low["zero3"] == pytest.approx(0.75 * (adapters + part["weights"]) - gathered)


def test_four_bit_weights_are_shared_too(found):
    """A run through DeepSpeed stores them as numbers of the base's type, whether the recipe says so or not."""
    whole, shared = found("nf4")
    assert shared[8, "zero3"].low < shared[8, "zero2"].low - 0.5 * sizes(whole)["weights"]
    assert shared[8, "zero3_offload"].host > ADAM_ON_HOST * whole.made.trained / 8
    stored, split = found("nf4 as bfloat16")
    assert sizes(stored)["weights"] == pytest.approx(sizes(whole)["weights"])
    assert split[8, "zero3"].low == pytest.approx(shared[8, "zero3"].low)


def test_int8_weights_are_not_shared(found):
    """ZeRO-3 leaves them whole; a run with both is refused."""
    whole, shared = found("int8")
    assert shared[8, "zero3"].low > sizes(whole)["weights"]


def test_what_is_offloaded_is_in_the_hosts_memory(each):
    """The optimizer's state and a float32 copy; with ZeRO-3 the weights too. Nothing is there otherwise."""
    whole, shared = each
    state = sizes(whole)["optimizer"]
    for (gpus, stage), share in shared.items():
        if not stage.endswith("offload"):
            assert share.host == 0
            continue
        assert share.host >= ADAM_ON_HOST * whole.made.trained / gpus
        assert shared[gpus, stage.removesuffix("_offload")].low - share.low >= state / gpus - 1e-6
    moved = shared[2, "zero3_offload"].host - shared[2, "zero2_offload"].host
    expected = sizes(whole)["weights"] / 2
    assert moved == pytest.approx(expected) or moved == 0
