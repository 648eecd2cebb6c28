"""The trainer's loaders give the batches that a recipe asks for."""

import json
from dataclasses import replace

import pytest
import torch

from lora_cot.data import sources
from lora_cot.data.batches import GroupedBatches
from lora_cot.data.shapes import make_sample
from lora_cot.training.run import train
from lora_cot.training.trainer import CotTrainer


class BuiltError(Exception):
    """The trainer is there; nothing was trained."""


@pytest.fixture
def trainer(make_recipe, tmp_path, monkeypatch):
    """The trainer of a recipe with overrides, before its first step."""
    built = []

    def stop(self, **_):
        built.append(self)
        raise BuiltError

    def make(*overrides):
        monkeypatch.setattr(CotTrainer, "train", stop)
        with pytest.raises(BuiltError):
            train(make_recipe(tmp_path, *overrides, quantization=None), tmp_path / str(len(built)))
        return built[-1]

    return make


def order(trainer, epoch=0):
    """Numbers of samples, batch by batch."""
    loader = trainer.get_train_dataloader()
    loader.set_epoch(epoch)
    return list(loader.batch_sampler)


def test_the_order_is_that_of_a_seed(trainer):
    """`data_seed` where it is set, else `seed`; each epoch has an order of its own."""
    keys = ([], ["seed=1"], ["data_seed=1"], ["data_seed=1", "seed=5"])
    zero, one, same, again = (trainer(*(f"training.{key}" for key in chosen)) for chosen in keys)
    assert order(one) == order(same) == order(again) != order(zero)
    assert order(zero) == order(zero) != order(zero, epoch=1)


def test_a_step_is_the_same_however_it_is_accumulated(trainer):
    """The loader takes batch size and accumulation from the recipe: four times one sample are the four of one batch."""
    whole, parts = (
        trainer(f"training.per_device_train_batch_size={size}", f"training.gradient_accumulation_steps={4 // size}")
        for size in (4, 1)
    )
    assert {len(batch) for batch in order(parts)} == {1}
    numbers = [number for (number,) in order(parts)]
    assert [set(batch) for batch in order(whole)] == [set(numbers[start : start + 4]) for start in range(0, 16, 4)]


def test_steps_may_be_made_by_length(trainer):
    """If the recipe asks for it; the lengths of a step are then closer together than those of one drawn at random."""

    def spread(trainer):
        lengths = trainer._train_set.lengths
        return sum(max(found) - min(found) for batch in order(trainer) if (found := [lengths[n] for n in batch]))

    options = ("training.per_device_train_batch_size=4", "data.train=[{source: shapes, limit: 64}]")
    drawn, grouped = trainer(*options), trainer(*options, "training.train_sampling_strategy=group_by_length")
    assert spread(grouped) < spread(drawn) / 3


def test_held_out_samples_come_by_length(trainer):
    """In the same order at every evaluation, in batches of their own size, the longest first."""
    held_out = "data.eval=[{source: shapes, split: validation, limit: 12}]"
    loader = trainer("training.per_device_eval_batch_size=3", held_out).get_eval_dataloader()
    batches = list(loader.batch_sampler)
    assert isinstance(loader.batch_sampler, GroupedBatches) and batches == list(loader.batch_sampler)
    assert [len(batch) for batch in batches] == [3] * 4
    lengths = [int(row.sum()) for made in loader for row in made["attention_mask"]]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 4


@pytest.mark.parametrize("kind", [pytest.param("mllama", marks=pytest.mark.slow), "qwen2_vl"])
def test_an_evaluation_never_mixes_rows_with_and_without_images(make_recipe, make_base, tmp_path, monkeypatch, kind):
    """Where the trainer itself evaluates, its batches are grouped too, and the loss is a mean over all tokens."""
    rows = [make_sample(number, "validation", 0) for number in range(4)]
    rows[1], rows[2] = replace(rows[1], images=()), replace(rows[2], images=())
    monkeypatch.setitem(sources.SOURCES, "shapes", lambda source, _: ((row.id, lambda row=row: row) for row in rows))
    seen, compute = [], CotTrainer.compute_loss

    def look(self, model, inputs, *args, **keys):
        images = int("pixel_values" in inputs) if kind != "mllama" else inputs.get("pixel_values", torch.zeros(0, 0)).shape[1]
        seen.append((model.training, len(inputs["input_ids"]), images))
        return compute(self, model, inputs, *args, **keys)

    monkeypatch.setattr(CotTrainer, "compute_loss", look)
    overrides = [f"model.base={make_base(kind)}", "training.max_steps=1", "training.eval_strategy=steps"]
    folder = train(make_recipe(tmp_path, *overrides, "training.eval_steps=1", "training.eval_generations=0"), tmp_path)
    assert sorted(batch[1:] for batch in seen if not batch[0]) == [(2, 0), (2, 1)]
    (entry,) = json.loads((folder / "report.json").read_text())["passes"][0]["evaluations"]
    stages = [entry[f"eval_loss/{name}"] for name in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")]
    assert min(stages) < entry["eval_loss"] < max(stages)


@pytest.mark.slow
def test_a_frozen_vision_encoder_gets_no_backward(make_recipe, tmp_path, monkeypatch):
    """With checkpointing the features of images that nothing trained made need no gradient."""
    needs = []

    def watch(self, *args, **keys):
        self._backbone.part("projector").register_forward_hook(lambda module, given, out: needs.append(out.requires_grad))
        return train_as_it_is(self, *args, **keys)

    train_as_it_is = CotTrainer.train
    monkeypatch.setattr(CotTrainer, "train", watch)
    for parts, expected in (("[language_model]", False), ("[language_model, vision_encoder]", True)):
        needs.clear()
        overrides = ["training.gradient_checkpointing=true", f"lora.parts={parts}", "training.max_steps=1"]
        train(make_recipe(tmp_path, *overrides, "training.eval_generations=0"), tmp_path / parts)
        assert needs and needs[0] is expected


def test_the_head_scores_labels_alone(trainer, monkeypatch):
    """On a CPU too: prompts and image slots are not multiplied with the vocabulary."""
    from trl.trainer import utils

    made = trainer("training.per_device_train_batch_size=4")
    inputs = made._prepare_inputs(next(iter(made.get_train_dataloader())))
    apply, rows = utils._ChunkedLogProbFunction.apply, []

    def watched(hidden, *rest):
        rows.append(len(hidden))
        return apply(hidden, *rest)

    monkeypatch.setattr(utils._ChunkedLogProbFunction, "apply", watched)
    trained = int((inputs["labels"][:, 1:] >= 0).sum())
    made.compute_loss(made.model, inputs)
    assert rows == [trained] and trained < inputs["labels"].numel() / 1.2
