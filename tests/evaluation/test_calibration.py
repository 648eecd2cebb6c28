"""Calibrating a scorer with an opened model."""

import math

import pytest

from lora_cot import calibrate
from lora_cot.backbones import FAMILIES
from lora_cot.engines.opening import OpenedRemote, Server
from lora_cot.errors import RunError
from tests.search.scripted import ScriptedEngine


def script(state, seed):
    """A reasoning is as likely as the question's id is long."""
    stage = seed.split("/")[-2].split(".")[0]
    return f"<{stage}> x </{stage}>", -1.0 if sum(map(ord, state[0])) % 2 else -3.0


@pytest.mark.slow
def test_the_first_questions_of_a_benchmark_are_asked(make_recipe, tmp_path):
    """With the recipe's search and the keys over it; what is measured is what the recipe wants."""
    engine = ScriptedEngine(script)
    opened = OpenedRemote(engine, make_recipe(tmp_path, "search.seed=3"), FAMILIES["llava"], "m", Server("http://h"))
    found = calibrate(opened, "shapes", 6, "validation")
    assert found.count == 6 == len({state[0] for asks in engine.calls for state in [ask.state for ask in asks]})
    assert found.mean == pytest.approx(-2.0, abs=1.01) and math.isfinite(found.std)
    assert all(seed.startswith("3/") for seed in engine.seeds)
    calibrate(opened, "shapes", 2, search={"seed": 4})
    assert engine.seeds[-1].startswith("4/")
    with pytest.raises(RunError, match="split"):
        calibrate(opened, "shapes", 2, "nosuch")
