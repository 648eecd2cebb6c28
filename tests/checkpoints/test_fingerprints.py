"""What a run is made of: everything that could change what it learns changes its fingerprint, and nothing else does."""

import shutil
from dataclasses import replace

import pytest

from lora_cot.checkpoints.fingerprints import base_print, data_print, differences, recipe_print
from lora_cot.data.shapes import make_sample
from lora_cot.types import StoredImage


@pytest.fixture
def samples(tmp_path):
    """Three samples: their images in a file, as bytes, in a table."""
    made = [make_sample(number, "train", 0) for number in range(3)]
    path = tmp_path / "0.png"
    path.write_bytes(made[0].images[0])
    table = [{"image": {"bytes": made[2].images[0]}}]
    return [replace(made[0], images=(path,)), made[1], replace(made[2], images=(StoredImage(table, 0, "image"),))]


def test_every_part_of_a_sample_counts(samples):
    """Id, question, gold texts, options, order; and which of two parts a sample is in."""
    whole = data_print(samples)
    assert whole == data_print(list(samples))
    last = samples[0].exchanges[-1]
    others = [
        [replace(samples[0], id="x"), *samples[1:]],
        [replace(samples[0], exchanges=(replace(last, question="x"),)), *samples[1:]],
        [replace(samples[0], exchanges=(replace(last, stages={**last.stages, "CAPTION": "x"}),)), *samples[1:]],
        [replace(samples[0], choices=("a", "b")), *samples[1:]],
        [replace(samples[0], images=()), *samples[1:]],
        samples[::-1],
    ]
    assert len({whole, *map(data_print, others)}) == len(others) + 1
    assert data_print(samples[:2], samples[2:]) != data_print(samples[:1], samples[1:])


def test_pixels_count_wherever_they_are(samples):
    """In a file, as bytes, in a table."""
    whole, other = data_print(samples), make_sample(9, "train", 0).images[0]
    assert data_print([samples[0], replace(samples[1], images=(other,)), samples[2]]) != whole
    table = StoredImage([{"image": {"bytes": other}}], 0, "image")
    assert data_print([*samples[:2], replace(samples[2], images=(table,))]) != whole
    samples[0].images[0].write_bytes(other)
    assert data_print(samples) != whole


def test_weights_that_were_exchanged_count(make_recipe, make_base, tmp_path):
    """Of the base, of a T5's vision encoder, of the adapter that is gone on from; what lies beside the adapter does not."""
    base, encoder, run = tmp_path / "base", tmp_path / "encoder", tmp_path / "run"
    shutil.copytree(make_base("t5_vision"), base)
    shutil.copytree(base / "vision_encoder", encoder)
    (run / "adapter").mkdir(parents=True)
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"1")
    keys = (f"model.base={base}", f"model.vision_encoder={encoder}", f"model.adapter={run}")
    recipe = make_recipe(tmp_path, *keys)
    prints = [base_print(recipe)]
    (run / "evaluation.json").write_text("{}")
    assert base_print(recipe) == prints[0]
    for path in (base / "model.safetensors", encoder / "model.safetensors", run / "adapter" / "adapter_model.safetensors"):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        prints.append(base_print(recipe))
    assert len(set(prints)) == 4


def test_what_decides_nothing_may_differ(make_recipe, tmp_path):
    """How questions are answered, unless answers are trained on or choose the best checkpoint; lengths, unless they shrink."""
    plain, budget = make_recipe(tmp_path), "search.stages.CAPTION.max_new_tokens=99"
    assert not differences(recipe_print(plain), recipe_print(make_recipe(tmp_path, budget, "training.max_length=900")))
    for keys in (
        ("training.hand_on=predicted",),
        ("training.metric_for_best_model=accuracy", "training.eval_strategy=steps"),
    ):
        one, other = make_recipe(tmp_path, *keys), make_recipe(tmp_path, *keys, budget)
        (only,) = differences(recipe_print(one), recipe_print(other))
        assert str(only).startswith("search.stages.CAPTION.max_new_tokens · it was 8, and is 99 · set it back")
    shrink = ("training.long_samples=shrink_image", "training.max_length=200")
    (only,) = differences(
        recipe_print(make_recipe(tmp_path, *shrink)), recipe_print(make_recipe(tmp_path, *shrink, "training.max_length=100"))
    )
    assert only.where == "training.max_length"
