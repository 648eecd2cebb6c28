"""Changes that make a recipe fit: they do, none is in vain, and what costs least comes first."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lora_cot.planning.changes import Change, _offers, cheapest, with_keys
from lora_cot.planning.estimate import Estimate, Item, Phase
from lora_cot.planning.plan import plan
from lora_cot.recipe import Recipe
from lora_cot.recipe.load import load_recipe

COSTLY = {
    "name": "costly",
    "model": {"base": "b"},
    "lora": {"r": 64},
    "training": {
        "optim": "adamw_torch",
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,
        "max_length": 4000,
    },
    "search": {"strategy": "stage_beam", "candidates": 4},
    "evaluation": {"batch_size": 4},
}


def modelled(recipe):
    """An estimate that follows the keys roughly as a real one does."""
    keys, section = recipe.training.library, recipe.quantization
    bits = 16.0 if section is None else 8.0 if section.load_in_8bit else 4.5
    if section is not None and section.library.get("bnb_4bit_use_double_quant"):
        bits -= 0.4
    vision = 16.0 if section is None or len(section.skip_parts) > 1 else bits
    weights = Item("weights", "language_model", 7 * bits / 8 + 0.3 * vision / 8)
    state = Item("optimizer", "optimizer", recipe.lora.r * (0.01 if str(keys.get("optim")).endswith("8bit") else 0.04))
    tokens = keys["per_device_train_batch_size"] * keys["max_length"] / 1000
    made = Item("passing", "activations", tokens * (0.1 if keys["gradient_checkpointing"] else 1.0))
    candidates = recipe.search.candidates if recipe.search.strategy == "stage_beam" else 1
    cache = Item("passing", "cache", 0.3 * recipe.evaluation.batch_size * candidates)
    return Estimate(True, [Phase("training", [weights, state, made]), Phase("answering", [weights, cache])], None)


def changed(recipe, changes):
    """The recipe with all changes made."""
    return with_keys(recipe, {key: value for change in changes for key, value in change.keys.items()})


def in_bytes(gigabytes):
    """The model above counts in GB: its figures are small beside the driver's bytes, which all estimates have."""
    return gigabytes + 0.6e9


@given(st.floats(1, 45), st.sampled_from([None, {"load_in_8bit": True}, {"load_in_4bit": True}]))
def test_changes_suffice_and_none_is_in_vain(limit, quantization):
    """With all of them it fits; without any one of them it does not; if nothing helps enough, all that helps is there."""
    recipe = Recipe.model_validate(COSTLY | {"quantization": quantization})
    changes, after = cheapest(recipe, modelled(recipe), in_bytes(limit), modelled)
    assert after.high == modelled(changed(recipe, changes)).high
    if modelled(recipe).high <= in_bytes(limit):
        assert changes == []
    elif after.high <= in_bytes(limit):
        for number in range(len(changes)):
            less = changed(recipe, changes[:number] + changes[number + 1 :])
            assert modelled(less).high > in_bytes(limit)
    else:
        everything = modelled(changed(recipe, list(_offers(recipe))))
        assert after.high == pytest.approx(everything.high)


@given(st.floats(1, 45))
def test_what_costs_less_is_tried_first(limit):
    """Whatever is not among the changes, and comes before the last of them, does not spare that last one."""
    recipe = Recipe.model_validate(COSTLY)
    changes, after = cheapest(recipe, modelled(recipe), in_bytes(limit), modelled)
    if changes and after.high <= in_bytes(limit):
        offers = list(_offers(recipe))
        before = offers[: offers.index(changes[-1])]
        assert modelled(changed(recipe, before)).high > in_bytes(limit)


def test_the_order_is_by_cost():
    """Free, then time, then accuracy of answers, then quality, then capacity, then data."""
    recipe = Recipe.model_validate(COSTLY | {"quantization": {"load_in_4bit": True}})
    costs = [change.cost.split()[0].strip(":") for change in _offers(recipe)]
    order = ["nothing", "next", "time", "accuracy", "some", "capacity", "samples"]
    assert [order.index(cost) for cost in costs] == sorted(order.index(cost) for cost in costs)
    assert set(costs) == set(order)


def test_a_step_holds_as_many_samples_as_before():
    """Batches that do not divide it are left out."""
    recipe = Recipe.model_validate(COSTLY)
    sizes = [
        (change.keys["training.per_device_train_batch_size"], change.keys["training.gradient_accumulation_steps"])
        for change in _offers(recipe)
        if "training.per_device_train_batch_size" in change.keys
    ]
    assert sizes == [(3, 4), (1, 12)]


def test_eight_bits_give_way_to_four():
    """A recipe cannot ask for both."""
    recipe = Recipe.model_validate(COSTLY | {"quantization": {"load_in_8bit": True}})
    for change in _offers(recipe):
        section = with_keys(recipe, change.keys).quantization
        assert section.load_in_4bit != section.load_in_8bit


def test_images_are_still_made_smaller():
    """A recipe that shrinks images of long samples does not begin to drop the samples."""
    training = COSTLY["training"] | {"long_samples": "shrink_image"}
    recipe = Recipe.model_validate(COSTLY | {"training": training})
    assert {change.keys.get("training.long_samples") for change in _offers(recipe)} == {None, "shrink_image"}


def test_keys_are_set_where_they_belong():
    """In sections that are there or not; all others stay."""
    recipe = Recipe.model_validate(COSTLY)
    found = with_keys(recipe, {"quantization.load_in_4bit": True, "lora.r": 3})
    assert found.quantization.load_in_4bit and found.lora.r == 3
    assert found.training == recipe.training and recipe.quantization is None


def test_the_lines_to_paste_make_it_fit(make_recipe, tmp_path):
    """Merged into the recipe's file they load, and give the figures that were promised."""
    options = {"optim": "adamw_torch", "per_device_train_batch_size": 16, "max_steps": 4, "gradient_checkpointing": False}
    recipe = make_recipe(tmp_path, quantization=None, training=options, lora={"r": 64})
    before = plan(recipe, vram_gb=100)
    assert (before.fits, before.changes, before.changed) == ("yes", [], None)
    wanted = round((before.estimate.high - 0.006e9) / 1e9, 4)
    found = plan(recipe, vram_gb=wanted)
    assert found.fits in ("perhaps", "no") and found.changed.high <= wanted * 1e9
    text = found.lines()
    begin = next(number for number, line in enumerate(text) if line.startswith("with these lines it fits"))
    sections = yaml.safe_load("\n".join(text[begin + 2 : text.index("", begin + 2)]))
    values = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    for name, section in sections.items():
        values[name] = (values.get(name) or {}) | section
    pasted = tmp_path / "pasted.yaml"
    pasted.write_text(yaml.safe_dump(values))
    again = plan(load_recipe(pasted), vram_gb=wanted)
    assert again.fits == "yes"
    assert (again.estimate.low, again.estimate.high) == (found.changed.low, found.changed.high)
    assert all(any(key in line for line in text) for change in found.changes for key in change.keys)


@pytest.mark.slow
def test_what_nothing_reaches(make_recipe, tmp_path):
    """It says so, and gives all that helps."""
    recipe = make_recipe(tmp_path, "training.per_device_train_batch_size=2", "lora.r=32")
    found = plan(recipe, vram_gb=0.1)
    assert plan(changed(recipe, found.changes)).estimate.made.trained == found.changed.made.trained
    assert found.fits != "yes" and found.changed.high > 0.1e9
    assert "these lines help, but are not enough" in "\n".join(found.lines())
    keys = {key for change in found.changes for key in change.keys}
    assert {"training.gradient_checkpointing", "training.per_device_train_batch_size", "lora.r"} <= keys
    least = {"training.optim=paged_adamw_8bit", "training.gradient_checkpointing=true", "quantization.skip_parts=[lm_head]"}
    small = make_recipe(tmp_path, "training.per_device_train_batch_size=1", "evaluation.batch_size=1", *least)
    assert "no change that is known of makes it smaller" in plan(small, vram_gb=0.1).lines()


def test_changes_of_one_kind_are_one():
    """Half the batch, then a quarter of it: only the last is told of."""
    recipe = Recipe.model_validate(COSTLY)
    changes, _ = cheapest(recipe, modelled(recipe), in_bytes(1), modelled)
    keys = [tuple(change.keys) for change in changes]
    assert len(set(keys)) == len(keys)
    assert Change({"lora.r": 8}, "capacity of the adapter") in changes
