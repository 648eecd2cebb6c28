"""The trainer's loaders give the batches that a recipe asks for."""

import pytest

from lora_cot.data.batches import GroupedBatches
from lora_cot.training.run import train
from lora_cot.training.trainer import CotTrainer


class BuiltError(Exception):
    """The trainer is there; nothing was trained."""


@pytest.fixture
def trainer(make_recipe, tmp_path, monkeypatch):
    """The trainer of a recipe with overrides, before its first step."""
    built = []

    def stop(self):
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


def test_held_out_samples_come_by_length(trainer):
    """In the same order at every evaluation, in batches of their own size, the longest first."""
    held_out = "data.eval=[{source: shapes, split: validation, limit: 12}]"
    loader = trainer("training.per_device_eval_batch_size=3", held_out).get_eval_dataloader()
    batches = list(loader.batch_sampler)
    assert isinstance(loader.batch_sampler, GroupedBatches) and batches == list(loader.batch_sampler)
    assert [len(batch) for batch in batches] == [3] * 4
    lengths = [int(row.sum()) for made in loader for row in made["attention_mask"]]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 4
