"""SWIRES: when it goes back, what it keeps, and what it must be told before."""

import math

import pytest

from lora_cot.errors import SearchError
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.contests import Verdict, logprob
from lora_cot.search.run import answer
from lora_cot.search.swires import RELEASED_CUTOFF, calibrate, cutoff
from lora_cot.types import Exchange, Sample
from tests.search.scripted import ScriptedEngine, check_accounts

FOUR_STAGE = FORMATS["four_stage"]


def question(name="q"):
    return Sample(name, (Exchange(f"What is {name}?"),))


def numbered(_state, seed):
    """Each candidate's text names its step and number."""
    step, number = seed.split("/")[-2:]
    stage = step.split(".")[0]
    return f"<{stage}> {step}.{number} </{stage}>", -1.0


def worth(table, default=0.0):
    """A scorer of texts by their words."""

    def score(contests):
        return [[table.get(text.split()[-1], default) for text in contest.texts] for contest in contests]

    return score


def run(table, engine=None, **keys):
    faithful = keys.pop("faithful", False)
    engine = engine or ScriptedEngine(numbered)
    config = SearchSection(strategy="swires", faithful=faithful, swires={"cutoff": 0.5, **keys})
    (completion,) = answer(engine, FOUR_STAGE, [question()], config, scorer=worth(table))
    assert check_accounts(completion, engine) == completion.text
    return completion


def steps(completion):
    return [(step.stage, len(step.candidates)) for step in completion.trace]


def test_good_reasonings_need_no_way_back():
    """Four captions, two of which go on to two reasonings each; the best two of those get a conclusion each."""
    table = {"CAPTION.0.2": 9.0, "CAPTION.0.1": 8.0, "REASONING.0.3": 0.9, "REASONING.0.1": 0.8, "CONCLUSION.1": 1.0}
    completion = run(table)
    assert steps(completion) == [("SUMMARY", 1), ("CAPTION", 4), ("REASONING", 4), ("CONCLUSION", 2)]
    assert [stage.text for stage in completion.parsed.stages] == ["SUMMARY.0", "CAPTION.0.2", "REASONING.0.1", "CONCLUSION.1"]
    caption, reasoning = completion.trace[1:3]
    assert [c.parent for c in reasoning.candidates] == [caption.candidates[2].number] * 2 + [caption.candidates[1].number] * 2
    assert [c.score for c in reasoning.candidates] == [0.0, 0.8, 0.0, 0.9]


@pytest.mark.parametrize("retraces", [0, 1, 3])
def test_poor_reasonings_are_retraced(retraces):
    """As often as the settings say; reasonings of all rounds are kept."""
    completion = run({"REASONING.0.0": 0.4, "REASONING.1.0": 0.3}, retraces=retraces)
    assert [name for name, _ in steps(completion)] == ["SUMMARY", *["CAPTION", "REASONING"] * (1 + retraces), "CONCLUSION"]
    assert completion.parsed.get("REASONING").text == "REASONING.0.0"


def test_it_is_accepted_when_enough_of_all_rounds_are_good():
    """The second-best of all rounds must be above the cutoff, not at it."""
    table = {"REASONING.0.0": 0.9, "REASONING.0.1": 0.5, "REASONING.1.0": 0.6}
    assert steps(run(table)).count(("CAPTION", 4)) == 2
    assert steps(run(table, keep=1)).count(("CAPTION", 4)) == 1
    assert steps(run(table, keep=3)).count(("CAPTION", 4)) == 4


def test_the_released_loop():
    """Five rounds, two captions kept, three conclusions; its cutoff belongs to its own reward model."""
    completion = run({}, faithful=True, keep=1, retraces=0)
    assert steps(completion) == [("SUMMARY", 1), *[("CAPTION", 4), ("REASONING", 4)] * 5, ("CONCLUSION", 3)]
    assert cutoff(SearchSection(faithful=True)) == RELEASED_CUTOFF == pytest.approx(-0.2431, abs=1e-4)


def test_the_cutoff():
    """Given, or of mean and standard deviation; else it is refused before anything is run."""
    assert cutoff(SearchSection(swires={"mean": -0.77, "std": 2.08})) == pytest.approx(-0.2431, abs=1e-4)
    assert cutoff(SearchSection(swires={"mean": 1, "std": 2, "z": 0.5})) == 2
    assert cutoff(SearchSection(swires={"mean": 1, "std": 2, "cutoff": 7})) == 7
    engine = ScriptedEngine(numbered)
    with pytest.raises(SearchError, match=r"which scores are good ones · set search\.swires\.mean and std to what"):
        answer(engine, FOUR_STAGE, [question()], SearchSection(strategy="swires", swires={"mean": 1}))
    assert engine.calls == []


@pytest.mark.parametrize("name", ["direct", "two_stage", "one_stage", "answer_only"])
def test_formats_without_three_stages_are_refused(name):
    """The error says what can be used instead."""
    config = SearchSection(strategy="swires", swires={"cutoff": 0})
    with pytest.raises(SearchError, match=f"the format {name} has not · use stage_beam, best_of_n, majority or adaptive"):
        answer(ScriptedEngine(numbered), FORMATS[name], [question()], config)


def test_a_judge_of_pairs_is_refused():
    """Comparisons won are no score that a cutoff could be for."""
    config = SearchSection(strategy="swires", swires={"cutoff": 0}, scorer="self_judge")
    with pytest.raises(SearchError, match="no score that a cutoff could be for · use logprob or reward"):
        answer(ScriptedEngine(numbered), FOUR_STAGE, [question()], config)


@pytest.mark.parametrize("stage", ["CAPTION", "REASONING"])
def test_a_stage_that_nobody_closes(stage):
    """Every round tries again; then the furthest text is returned with the reason."""

    def script(state, seed):
        text, mean = numbered(state, seed)
        return (text.removesuffix(f" </{stage}>"), mean)

    completion = run({}, ScriptedEngine(script))
    assert completion.stopped == f"no candidate closed {stage}"
    assert [name for name, _ in steps(completion)].count(stage) == 4
    assert completion.parsed.get(stage).text.startswith(stage)
    once = lambda state, seed: (script if ".0/" in seed else numbered)(state, seed)  # noqa: E731
    assert run({}, ScriptedEngine(once)).stopped == "complete"


@pytest.mark.parametrize("most", range(1, 105))
def test_it_ends_within_its_tokens(most):
    """At whatever step they are spent."""

    def script(state, seed):
        stage = seed.split("/")[-2].removeprefix("more.").split(".")[0]
        written = state[1][state[1].rindex(f"<{stage}>") :].split() if "more." in seed else []
        words = [f"<{stage}>", *"abc", f"</{stage}>"]
        return " ".join(["", *words[len(written) :]] if written else words), -1.0

    engine = ScriptedEngine(script)
    config = SearchSection(strategy="swires", swires={"cutoff": 9.0}, max_search_tokens=most)
    (completion,) = answer(engine, FOUR_STAGE, [question()], config)
    assert check_accounts(completion, engine) == completion.text != ""
    assert completion.generated_tokens <= most
    assert completion.stopped == f"out of tokens: max_search_tokens is {most}"
    many = [len(step.candidates) > 1 for step in completion.trace[1:]]
    assert many == sorted(many, reverse=True), "once one candidate is finished alone, no more rounds are begun"


def served(monkeypatch, is_down, score, script=numbered):
    """The completion with a server that is down for some contests."""

    def reward(contests):
        return [
            Verdict(0, logprob([one])[0].scores, failures=1)
            if is_down(one)
            else Verdict(0, [score] * len(one.texts), scored_by="reward")
            for one in contests
        ]

    monkeypatch.setattr("lora_cot.search.scorers.reward", lambda _section: reward)
    config = SearchSection(strategy="swires", scorer="reward", reward={"url": "http://localhost"}, swires={"cutoff": 0})
    engine = ScriptedEngine(script)
    (completion,) = answer(engine, FOUR_STAGE, [question()], config)
    assert check_accounts(completion, engine) == completion.text
    return completion


def test_scores_that_are_missing_retrace_nothing(monkeypatch):
    """A server that is down leaves likelihoods: they choose, and are not held against the cutoff."""
    completion = served(monkeypatch, lambda _one: True, 0.0)
    assert steps(completion).count(("CAPTION", 4)) == 1
    assert completion.judge_failures == 1 + 2 + 1


def test_likelihoods_that_are_not_told_retrace_nothing():
    """No round would be better; and there is nothing to calibrate by."""
    engine = ScriptedEngine(lambda state, seed: (numbered(state, seed)[0], math.nan))
    config = SearchSection(strategy="swires", swires={"cutoff": -1.0})
    (completion,) = answer(engine, FOUR_STAGE, [question()], config)
    assert steps(completion).count(("CAPTION", 4)) == 1 and completion.stopped == "complete"
    with pytest.raises(SearchError, match="0 of 3 questions came to a reasoning with a score"):
        calibrate(engine, FOUR_STAGE, [question(name) for name in "abc"], None, SearchSection())


def test_one_step_has_one_unit(monkeypatch):
    """Where some of its texts have no score of the server, all are scored by likelihood."""
    down = lambda one: one.stage.name == "REASONING" and ("CAPTION", "CAPTION.0.0") in one.given  # noqa: E731
    completion = served(monkeypatch, down, 7.0)
    step = completion.trace[2]
    assert (step.stage, step.scored_by, step.failures) == ("REASONING", "logprob", 1)
    assert [c.score for c in step.candidates] == [-1.0] * 4


def test_rounds_of_different_units_are_compared_by_likelihood(monkeypatch):
    """A poor reward of one round does not beat the likelihoods of another because it is above zero."""

    def likelier_later(state, seed):
        text, _ = numbered(state, seed)
        return text, -0.5 if "REASONING.1" in seed else -1.0

    down = lambda one: one.stage.name == "REASONING" and any("CAPTION.1" in text for _, text in one.given)  # noqa: E731
    completion = served(monkeypatch, down, -0.1, likelier_later)
    assert steps(completion).count(("CAPTION", 4)) == 2
    assert completion.parsed.get("REASONING").text.startswith("REASONING.1")


def test_calibration_measures_mean_and_deviation():
    """Of one sampled reasoning a question, by the scorer's own scores."""
    table = {"a": 1.0, "b": 2.0, "c": 6.0}
    engine = ScriptedEngine(lambda state, seed: (f"<{(s := seed.split('/')[-2].split('.')[0])}> {state[0]} </{s}>", -1.0))
    samples = [question(name) for name in "abc"]
    found = calibrate(engine, FOUR_STAGE, samples, worth(table), SearchSection())
    assert (found.mean, found.count) == (3.0, 3) and found.std == pytest.approx(7**0.5)
    assert [[len(ask.seeds) for ask in asks] for asks in engine.calls] == [[1, 1, 1]] * 3
    many = [question(f"{number}") for number in range(20)]
    engine = ScriptedEngine(engine.script)
    assert calibrate(engine, FOUR_STAGE, many, worth({}, 1.0), SearchSection()).count == 20
    assert max(len(asks) for asks in engine.calls) == 8
    with pytest.raises(SearchError, match="1 of 1 questions came to a reasoning with a score, and at least two"):
        calibrate(engine, FOUR_STAGE, samples[:1], worth(table), SearchSection())
    with pytest.raises(SearchError, match="no score that a cutoff could be for"):
        calibrate(engine, FOUR_STAGE, samples, None, SearchSection(scorer="self_judge"))
