"""What counts as learning: a gradient other than zero, once, in everything that is trained."""

import pytest
import torch

from lora_cot.adapters.liveness import Liveness
from lora_cot.errors import TrainingError


@pytest.fixture
def model():
    """Three trained tensors, a frozen one, and one that is LoRA's A."""
    names = ("used", "zeroed", "unused", "frozen", "lora_A")
    made = torch.nn.Module()
    for name in names:
        made.register_parameter(name, torch.nn.Parameter(torch.ones(2), requires_grad=name != "frozen"))
    return made


def test_a_gradient_of_zeros_is_none(model):
    """A tensor that takes part in the loss and cannot change it is as dead as one that takes none; A is not asked."""
    watched = Liveness(model)
    (model.used.sum() + 0 * model.zeroed.sum() + model.frozen.sum()).backward()
    assert watched.close() == ["zeroed", "unused"]


def test_once_is_enough(model):
    """Tensors may learn in different steps, also where gradients are taken away between them."""
    watched = Liveness(model)
    for name in ("used", "zeroed", "unused"):
        getattr(model, name).sum().backward()
        model.zero_grad()
    watched.check()


def test_the_dead_are_named_and_the_watch_ends(model):
    """The error counts and names them; what comes after is not looked at."""
    watched = Liveness(model)
    with pytest.raises(TrainingError, match="lora · 3 trained tensors got no gradient: used, zeroed, unused · take those"):
        watched.check()
    model.used.sum().backward()
    assert watched.close() == ["used", "zeroed", "unused"]
