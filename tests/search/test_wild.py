"""Every strategy on scripts that write anything: it ends, within its budgets, and its accounts are exact."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.search import budget
from lora_cot.search.run import answer
from lora_cot.search.strategies import STRATEGIES
from lora_cot.types import Exchange, Sample
from tests.search.scripted import Clock, ScriptedEngine, check_accounts, plain

STAGES = [stage.name for stage in FORMATS["four_stage"].stages]
TAGS = [tag for stage in STAGES for tag in (f"<{stage}>", f"</{stage}>")]
WORDS = [*TAGS, *TAGS, "a", "b.", "3.5", "Response 2: x", "\n\n", "", "The end.", "<summary>", "</"]


def wild(salt):
    """A script of random pieces; about half of its texts are what the stage wants, some fail with or without a text."""

    def script(state, seed):
        rng = random.Random(f"{salt}{state}{seed}")
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(12)))
        stage = next((name for name in STAGES if name in seed), None)
        if rng.random() < 0.6:
            wanted = [stage] if stage else STAGES
            text = " ".join(f"<{name}> {rng.choice(['a', 'b b.', 'c'])} </{name}>" for name in wanted)
        if rng.random() < 0.1:
            return text if rng.random() < 0.5 else "", -1.0, "the server has gone"
        return text, rng.uniform(-3, 0)

    return script


def fair(prompt):
    rng = random.Random(prompt)
    return [rng.uniform(-3, 0), rng.uniform(-3, 0)]


def question(name):
    return Sample(name, (Exchange(f"What is {name}?", stages={}),), choices=("a", "b b", "c"))


def made(salt, split, clock):
    script = wild(salt)
    says = lambda prompt: random.Random(prompt).choice(["I choose response 1.", "I choose response 2", "incorrect", "?"])  # noqa: E731
    return ScriptedEngine({"rationale": script, "answer": script} if split else script, fair, says, clock)


SHORT = {name: {"max_new_tokens": 7} for name in STAGES}
CONFIGS = st.builds(
    dict,
    candidates=st.integers(1, 5),
    keep=st.integers(1, 3),
    weighted=st.booleans(),
    scorer=st.sampled_from(["logprob", "self_judge"]),
    faithful=st.booleans(),
    max_search_tokens=st.none() | st.integers(1, 90),
    deadline_seconds=st.none() | st.floats(0.5, 60),
    swires=st.just({"cutoff": -1.0}),
    stages=st.sampled_from(
        [{}, {"CAPTION": {"candidates": 2, "keep": 2, "max_new_tokens": 3}, "ANSWER": {"max_new_tokens": 2}}]
    ),
)


@pytest.mark.crossed
@pytest.mark.parametrize("split", [False, True], ids=["one pass", "two passes"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=40)
@given(keys=CONFIGS, salt=st.integers())
def test_any_script_comes_to_an_end(strategy, split, keys, salt):
    """Tokens stay within the stages' and the question's budgets, the text is what was chosen, and nothing is lost."""
    cot_format = FORMATS["two_stage" if split else "four_stage"]
    if (strategy == "two_pass") != split and strategy in ("two_pass", "swires"):
        return
    if strategy == "swires" and (split or keys["scorer"] == "self_judge"):
        return
    if split:
        keys = {**keys, "stages": {"ANSWER": {"max_new_tokens": 2, "temperature": 0.1}}}
    if strategy in ("majority", "adaptive") and keys["scorer"] == "self_judge":
        keys = {**keys, "weighted": False}
    config, clock = SearchSection(strategy=strategy, **keys), Clock()
    patch = pytest.MonkeyPatch()
    patch.setattr(budget, "time", clock)
    try:
        engine = made(salt, split, clock)
        told = []
        samples = [question(name) for name in "xyz"]
        found = answer(engine, cot_format, samples, config, lambda number, step: told.append((number, step)))
    finally:
        patch.undo()
    for number, completion in enumerate(found):
        text = check_accounts(completion, engine)
        assert completion.text == text or split
        assert completion.stopped
        if config.max_search_tokens is not None:
            assert completion.generated_tokens <= config.max_search_tokens
        limits = {stage.name: config.budget(stage) for stage in cot_format.stages}
        assert completion.kept_tokens <= sum(limits.values())
        chosen = [step for step in completion.trace if any(c.chosen for c in step.candidates)]
        assert [step for told_number, step in told if told_number == number] == chosen
        assert all(sum(c.chosen for c in step.candidates) == 1 for step in chosen)
        json.dumps(completion.to_json(), allow_nan=False)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "two_pass"])
@settings(max_examples=15)
@given(salt=st.integers(), keep=st.integers(1, 2))
def test_a_batch_gives_what_its_questions_give_alone(strategy, salt, keep):
    """Completions do not depend on which other questions are answered with them, whenever those end or fail."""
    config = SearchSection(strategy=strategy, keep=keep, max_search_tokens=150, stages=SHORT, swires={"cutoff": -1.0})
    samples = [question(name) for name in "wxyz"]
    together = answer(made(salt, False, None), FORMATS["four_stage"], samples, config)
    alone = [answer(made(salt, False, None), FORMATS["four_stage"], [one], config)[0] for one in samples]
    assert plain(together) == plain(alone)


def test_searches_share_calls():
    """Questions at the same step are one call of the engine, those of another step too if they want the same thing."""
    config = SearchSection(strategy="stage_beam", candidates=2)
    engine = made(1, False, None)
    found = answer(engine, FORMATS["four_stage"], [question(name) for name in "abcdefgh"], config)
    assert len(engine.calls) == max(len(completion.trace) for completion in found)
    assert answer(engine, FORMATS["four_stage"], [], config) == []
