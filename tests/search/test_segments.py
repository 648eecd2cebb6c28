"""Segments: what differs between whole answers, sentences and stages, how wide beams go on, and how a search ends early."""

import weakref
from dataclasses import replace
from typing import get_args

import pytest

from lora_cot.engines.base import Candidate, Ended, Sampling
from lora_cot.errors import SearchError
from lora_cot.formats import FORMATS
from lora_cot.recipe.schema import SearchSection
from lora_cot.search import budget
from lora_cot.search.run import answer
from lora_cot.search.strategies import STRATEGIES
from lora_cot.types import Exchange, Sample
from tests.search.scripted import Clock, ScriptedEngine, by_stage, check_accounts, responses

FOUR_STAGE = FORMATS["four_stage"]
STAGES = [stage.name for stage in FOUR_STAGE.stages]
GOOD = {stage: [("a", -1.0), ("b", -2.0), ("c", -3.0), ("d", -4.0)] for stage in STAGES}


def question(name="q"):
    return Sample(name, (Exchange(f"What is {name}?"),))


def search(strategy="stage_beam", candidates=2, **keys):
    return SearchSection(strategy=strategy, candidates=candidates, **keys)


def ask(engine, config, cot_format=FOUR_STAGE):
    (completion,) = answer(engine, cot_format, [question()], config)
    assert cot_format.split or check_accounts(completion, engine) == completion.text
    return completion


def whole(*texts):
    """A script of whole answers (text, mean log-probability) by the number of their seed."""
    return lambda _state, seed: texts[int(seed.split("/")[-1])]


def four(conclusion, rest="x"):
    texts = [rest, rest, rest, conclusion]
    return " ".join(f"<{stage}> {text} </{stage}>" for stage, text in zip(STAGES, texts, strict=True))


@pytest.fixture
def clock(monkeypatch):
    """A clock that only what is written moves, a second a token."""
    found = Clock()
    monkeypatch.setattr(budget, "time", found)
    return found


def test_best_of_n_is_one_segment():
    """N whole answers; the scorer's choice is returned; one that ended beats one that was cut, an answer beats none."""
    texts = [(four("1"), -2.0), (four("2"), -1.0), ("<SUMMARY> s </SUMMARY>", -0.1), (four("4") + " and" * 2000, -0.1)]
    engine = ScriptedEngine(whole(*texts))
    completion = ask(engine, search("best_of_n", 4, stages={"SUMMARY": {"max_new_tokens": 3}}))
    assert (completion.parsed.answer, completion.stopped) == ("2", "complete")
    ((one,),) = engine.calls
    assert (len(one.seeds), one.stop, one.sentences, one.max_new_tokens) == (4, (), False, 3 + 512 + 1024 + 256)
    assert [c.score for c in completion.trace[0].candidates] == [-2.0, -1.0, None, None]
    cut = ask(ScriptedEngine(whole(("<CONCLUSION> 1" + " 2" * 99, -9.0), ("a b", -0.1))), search("best_of_n", stages=SHORT))
    assert (cut.parsed.answer[:3], cut.stopped) == ("1 2", "no end after 16 tokens")


SHORT = {stage: {"max_new_tokens": 4} for stage in STAGES}


def test_a_sentence_beam_goes_on_sentence_by_sentence():
    """Segments end with a sentence or a stage; the search ends with the last stage."""
    texts = ["<SUMMARY> One. ", "Two 3.5. ", "End </SUMMARY> ", "<CAPTION> c </CAPTION> ", "<REASONING> r </REASONING> "]
    texts.append("<CONCLUSION> 4 </CONCLUSION> more")
    script = lambda state, seed: (  # noqa: E731
        texts[int(seed.split("/")[-2].removeprefix("sentence")) - 1] + "x " * int(seed.split("/")[-1]),
        -1.0 - int(seed.split("/")[-1]),
    )
    engine = ScriptedEngine(script)
    completion = ask(engine, search("sentence_beam"))
    assert (completion.stopped, completion.parsed.outcome) == ("complete", "complete")
    assert [step.stage for step in completion.trace] == [f"sentence {n}" for n in range(1, 7)]
    assert all(one.sentences and set(one.stop) == {f"</{stage}>" for stage in STAGES} for (one,) in engine.calls)
    left = [one.max_new_tokens for (one,) in engine.calls]
    assert left[0] == 512 + 512 + 1024 + 256
    kept = [c.tokens for step in completion.trace for c in step.candidates if c.chosen]
    assert left == [left[0] - sum(kept[:n]) for n in range(6)]


@pytest.mark.parametrize(("late", "text"), [(-9.0, "Yes"), (-0.1, "Well. No")])
def test_a_text_that_has_ended_stays_in_a_wide_beam(late, text):
    """It competes with those that go on, and costs nothing more."""
    script = lambda state, seed: (  # noqa: E731
        (" No", late) if state[1] else [("Yes", -0.8), ("Well. And", -1.0)][int(seed[-1])]
    )
    engine = ScriptedEngine(script)
    completion = ask(engine, search("sentence_beam", keep=2), FORMATS["direct"])
    assert (completion.text, completion.stopped) == (text, "complete")
    assert [[c.tokens for c in step.candidates] for step in completion.trace] == [[1, 1], [1, 1, 0]]
    assert [c.parent for c in completion.trace[1].candidates] == [1, 1, 0]


@pytest.mark.parametrize(
    ("sentence", "stopped", "steps"),
    [
        ("Again.", "no end after 16 tokens", 16),
        ("And so on and on and on.", "no end after 16 tokens", 3),
        ("", "complete", 1),
        ("nothing", "complete", 1),
    ],
)
def test_sentences_without_end_are_bounded(sentence, stopped, steps):
    """A search that never comes to its last stage ends at the sum of the stages' budgets, or with the model's own end."""
    engine = ScriptedEngine(lambda _state, _seed: (f"{sentence} tail" if sentence.endswith(".") else sentence, -1.0))
    completion = ask(engine, search("sentence_beam", stages=SHORT))
    assert (completion.stopped, len(completion.trace)) == (stopped, steps)
    assert completion.kept_tokens <= 16


def test_a_wide_beam_keeps_the_best_and_shares_the_candidates():
    """The W best go on, the better one with more of the N; the text is that of the best path, known at the end."""
    table = {"SUMMARY": [("a", -2.0), ("b", -1.0), ("c", -3.0)], "CAPTION": [("p", -9.0), ("q", -9.0), ("r", -0.1)]}
    rest = {"REASONING": [("x", -1.0), ("y", -2.0), ("z", -3.0)], "CONCLUSION": [("1", -1.0), ("2", -2.0), ("3", -3.0)]}
    told = []
    engine = ScriptedEngine(by_stage(table | rest))
    config = search("stage_beam", 3, keep=2)
    (completion,) = answer(engine, FOUR_STAGE, [question()], config, lambda _n, step: told.append(step))
    asks = [[(one.state[1], len(one.seeds)) for one in asks] for asks in engine.calls]
    assert asks[1] == [("<SUMMARY> b </SUMMARY>", 2), ("<SUMMARY> a </SUMMARY>", 1)]
    assert [c.kept for c in completion.trace[0].candidates] == [True, True, False]
    assert [[c.chosen for c in step.candidates].index(True) for step in completion.trace[:2]] == [0, 2]
    assert [c.parent for c in completion.trace[1].candidates] == [1, 1, 0]
    assert completion.text.startswith("<SUMMARY> a </SUMMARY><CAPTION> r </CAPTION>")
    assert told == completion.trace
    check_accounts(completion, engine)


def test_texts_that_parted_earlier_are_scored_and_shown_from_there():
    """A judge of a wide beam is given what all texts share, and reads what differs."""
    table = {"SUMMARY": [("a", -2.0), ("b", -1.0)], "CAPTION": [("p", -1.0), ("q", -1.0)]}
    engine = ScriptedEngine(by_stage(GOOD | table), lambda _prompt: [0.0, -1.0])
    ask(engine, search("stage_beam", 2, keep=2, scorer="self_judge"))
    assert responses(engine.prompts[2]) == ("b p", "a q")
    assert not any("Given" in prompt for prompt in engine.prompts[:4])


def test_the_same_text_twice_does_not_fill_a_beam():
    """Of equal texts one goes on before another text is left out."""
    engine = ScriptedEngine(by_stage(GOOD | {"SUMMARY": [("a", -1.0), ("a", -1.5), ("b", -2.0), ("c", -3.0)]}))
    completion = ask(engine, search("stage_beam", 4, keep=2))
    assert [c.kept for c in completion.trace[0].candidates] == [True, False, True, False]


FAULTS = {
    "never closed": ("a b c …", 1, "no candidate closed CAPTION", 2),
    "another stage's end": ("a </REASONING> …", 1, "no candidate closed CAPTION", 2),
    "a later stage inside": ("a <REASONING> r </REASONING> …", 1, "no candidate closed CAPTION", 2),
    "a later stage inside, then closed": ("a <REASONING> r </REASONING>", 0, "complete", 0),
    "empty": ("", 0, "complete", 1),
}


@pytest.mark.parametrize(("text", "first", "stopped", "standing"), FAULTS.values(), ids=FAULTS)
def test_faulty_candidates(text, first, stopped, standing):
    """What all candidates of a stage do, and how the search goes on; one good candidate among them always wins."""
    alone = ask(ScriptedEngine(by_stage(GOOD | {"CAPTION": [(text, -0.1), (text, -0.2)]})), search())
    assert alone.stopped == stopped
    assert len(alone.trace) == (4 if stopped == "complete" else 2)
    mixed = ask(ScriptedEngine(by_stage(GOOD | {"CAPTION": [(text, -0.1), ("good", -9.0)]})), search())
    assert mixed.stopped == "complete"
    assert (mixed.parsed.get("CAPTION").text == "good") == (standing > 0)


def test_a_stage_that_was_never_opened_can_be_gone_on_from():
    """A text that ends at its tag without having begun loses to one that has, but does not end the search."""
    table = by_stage(GOOD)
    bare = lambda state, seed: ("a </SUMMARY>", -1.0) if "SUMMARY/0" in seed else table(state, seed)  # noqa: E731
    assert ask(ScriptedEngine(bare), search(candidates=1)).stopped == "complete"
    assert ask(ScriptedEngine(bare), search()).parsed.get("SUMMARY").text == "b"


def test_an_end_before_the_closing_tag():
    """The model's own end token does not close a stage."""
    engine = ScriptedEngine(lambda _state, _seed: ("<SUMMARY> a", -1.0))
    completion = ask(engine, search())
    assert (completion.stopped, completion.text) == ("no candidate closed SUMMARY", "<SUMMARY> a")
    assert [(c.ended, c.closed) for c in completion.trace[0].candidates] == [("end", False)] * 2


@pytest.mark.parametrize("strategy", ["sample", "best_of_n", "majority", "adaptive", "stage_beam", "sentence_beam", "swires"])
def test_an_engine_that_fails_for_one_question(strategy):
    """Its text so far is returned with the engine's words, and the other questions are untouched."""
    stages = by_stage(GOOD)

    def script(state, seed):
        step = seed.split("/")[-2]
        if state[0] == "b" and step not in ("SUMMARY", "sentence1"):
            return "<CAPTION> so f", -1.0, "the server has gone"
        return stages(state, seed) if step.split(".")[0] in STAGES else (four("1")[len(state[1]) :], -1.0)

    config = search(strategy, swires={"cutoff": -9.0})
    found = answer(ScriptedEngine(script), FOUR_STAGE, [question(name) for name in "abc"], config)
    assert [c.stopped for c in found] == ["complete", "the engine gave no text: the server has gone", "complete"]
    assert found[1].text.endswith("<CAPTION> so f") and found[0].parsed.outcome == "complete"
    assert answer(ScriptedEngine(script), FOUR_STAGE, [question("a")], config)[0].text == found[0].text


def test_one_candidate_that_fails_is_no_harm():
    """The others go on; the trace says why there is none."""
    engine = ScriptedEngine(by_stage(GOOD | {"CAPTION": [("a", -0.1, "gone"), ("b", -2.0)]}))
    completion = ask(engine, search())
    assert completion.stopped == "complete" and completion.parsed.get("CAPTION").text == "b"
    failed = completion.trace[1].candidates[0]
    assert (failed.ended, failed.problem, failed.score, failed.closed) == ("failed", "gone", None, False)


def test_a_text_that_the_engine_broke_off_loses_to_one_that_was_cut():
    """However likely it is: the search ended for want of a closing tag, and not for the engine."""
    engine = ScriptedEngine(by_stage(GOOD | {"CAPTION": [("a …", -0.1, "gone"), ("b …", -2.0)]}))
    completion = ask(engine, search())
    assert (completion.stopped, completion.parsed.get("CAPTION").text) == ("no candidate closed CAPTION", "b …")


def test_equal_candidates_skip_the_judge():
    """Nothing is asked about texts that are the same, and the trace counts what was spared."""
    engine = ScriptedEngine(by_stage({stage: [("a", -2.0), ("a", -1.0), ("a", -3.0)] for stage in STAGES}))
    completion = ask(engine, search(candidates=3, scorer="self_judge"))
    assert (engine.prompts, completion.judge_calls, completion.skipped_judgements) == ([], 0, 8)
    assert [c.chosen for c in completion.trace[0].candidates] == [False, True, False]


def test_a_spent_budget_is_finished_on_one_candidate():
    """Several candidates leave a share for one more; when all of them are cut, the best goes on alone with it."""
    long = {stage: [("w w w w w w", -1.0), ("v v v v v v", -2.0), ("u u u u u u", -3.0)] for stage in STAGES}
    engine = ScriptedEngine(by_stage(long))
    completion = ask(engine, search(candidates=3, max_search_tokens=44))
    asks = [(len(one.seeds), one.max_new_tokens, one.keep_states) for (one,) in engine.calls]
    assert asks == [(3, 11, True), (3, 5, True), (1, 5, True), (1, 2, True)]
    assert completion.stopped == "out of tokens: max_search_tokens is 44"
    assert completion.generated_tokens == 44
    assert [stage.text for stage in completion.parsed.stages] == ["w w w w w w"] * 2 + ["w"]


def test_a_text_that_was_finished_alone_has_ended_early():
    """It may be whole; the reason is told all the same."""

    def script(state, seed):
        words = ["w"] * 8 if seed[-1] == "0" else ["v"] * 9
        return " ".join([""] * bool(state[1]) + words[len(state[1].split()) :]), -1.0 - int(seed[-1])

    completion = ask(ScriptedEngine(script), search("best_of_n", max_search_tokens=21), FORMATS["direct"])
    assert (completion.text, completion.kept_tokens) == (" ".join("w" * 8), 8)
    assert completion.stopped == "out of tokens: max_search_tokens is 21"


@pytest.mark.parametrize("most", range(1, 30))
def test_tokens_are_never_exceeded(most):
    """Whatever the budget, the best text so far comes back with the reason."""
    completion = ask(ScriptedEngine(by_stage(GOOD)), search(candidates=4, max_search_tokens=most))
    assert completion.generated_tokens <= most
    assert completion.stopped == f"out of tokens: max_search_tokens is {most}"
    assert completion.text and "<SUMMARY> a </SUMMARY>".startswith(completion.text[:22])


def test_time_that_is_over_ends_a_search(clock):
    """What is written by the deadline is returned; the judge is not asked any more, and nothing is begun."""
    engine = ScriptedEngine(by_stage(GOOD), clock=clock)
    completion = ask(engine, search(scorer="self_judge", deadline_seconds=4.5))
    assert completion.stopped == "out of time: deadline_seconds is 4.5"
    assert completion.text == "<SUMMARY> a </SUMMARY><CAPTION> a"
    assert len(engine.calls) == 2 and clock.now < 6
    assert len(engine.prompts) == 2 and completion.trace[1].scored_by == "logprob"
    assert {one.deadline for (one,) in engine.calls} == {4.5}


def test_nothing_is_begun_when_the_time_is_over(clock):
    """A stage that was closed in time is the end of the text, and the engine is not asked again."""
    engine = ScriptedEngine(by_stage(GOOD), clock=clock)
    completion = ask(engine, search(deadline_seconds=3))
    assert (completion.text, completion.stopped) == ("<SUMMARY> a </SUMMARY>", "out of time: deadline_seconds is 3")
    assert len(engine.calls) == 1


def test_one_pass_is_within_the_budget_too(clock):
    """Greedy decoding and sampling stop at the question's tokens and time."""
    engine = ScriptedEngine(lambda _state, _seed: ("on and on and on", -1.0), clock=clock)
    few = ask(engine, SearchSection(max_search_tokens=3))
    assert (few.text, few.stopped) == ("on and on", "out of tokens: max_search_tokens is 3")
    late = answer(engine, FOUR_STAGE, [question("late")], SearchSection(deadline_seconds=2))[0]
    assert (late.text, late.stopped) == ("on and", "out of time: deadline_seconds is 2")


class Tensor(tuple):
    """A state that cannot be compared, as one that holds tensors."""

    def __eq__(self, _other):
        raise RuntimeError("the truth of a tensor")

    __hash__ = tuple.__hash__


class Opaque(ScriptedEngine):
    """An engine whose states are its own business."""

    def start(self, samples):
        return [Tensor(state) for state in super().start(samples)]

    def extend(self, asks):
        drawn = super().extend(asks)
        return [[replace(c, state=c.state and Tensor(c.state)) for c in candidates] for candidates in drawn]


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "two_pass"])
def test_states_are_handed_on_and_not_looked_at(strategy):
    """A search never compares them."""
    script = by_stage(GOOD)

    def write(state, seed):
        if seed.split("/")[-2].split(".")[0] in STAGES:
            return script(state, seed)
        return four(seed[-1])[len(state[1]) :], -1.0

    completion = ask(Opaque(write), search(strategy, 4, keep=2, swires={"cutoff": 0.0}))
    assert completion.stopped == "complete"


class Held:
    """A state that can be seen to be alive."""

    def __init__(self, state):
        self.state = state


class Counting(ScriptedEngine):
    """An engine that notes how many states are alive when it is asked, and how many it is asked about."""

    def __init__(self, script):
        super().__init__(script)
        self.alive, self.counts = weakref.WeakSet(), []

    def held(self, state):
        found = Held(state)
        self.alive.add(found)
        return found

    def start(self, samples):
        return [self.held(state) for state in super().start(samples)]

    def extend(self, asks):
        self.counts.append((len(self.alive), len({id(ask.state) for ask in asks})))
        drawn = super().extend([replace(ask, state=ask.state.state) for ask in asks])
        return [[replace(c, state=c.state and self.held(c.state)) for c in candidates] for candidates in drawn]


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("strategy", ["stage_beam", "sentence_beam"])
def test_states_that_lost_are_let_go(strategy, keep):
    """They are caches on a GPU: while candidates are drawn there are none but those that are gone on from."""
    script = by_stage(GOOD)
    write = lambda state, seed: script(state, seed) if "sentence" not in seed else (four(seed[-1])[len(state[1]) :], -1.0)  # noqa: E731
    engine = Counting(write)
    answer(engine, FOUR_STAGE, [question(name) for name in "abc"], search(strategy, 4, keep=keep))
    assert len(engine.counts) == 4 and all(alive == asked for alive, asked in engine.counts)


def test_swires_holds_what_it_may_conclude():
    """Of all rounds' reasonings only as many as get a conclusion, and what it went back to."""
    engine = Counting(by_stage(GOOD))
    answer(engine, FOUR_STAGE, [question()], search("swires", 4, swires={"cutoff": 9.0, "retraces": 3}))
    assert engine.counts[-1] == (1 + 2, 2)


class Idle(ScriptedEngine):
    """An engine that writes nothing, and says that it ended somehow."""

    def extend(self, asks):
        return [[Candidate("", 0, 0.0, self.script, ask.state) for _ in ask.seeds] for ask in asks]


@pytest.mark.parametrize("ended", get_args(Ended))
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "two_pass"])
def test_an_engine_that_writes_nothing(strategy, ended):
    """Whatever it says, the search comes to an end without an answer."""
    config = search(strategy, max_search_tokens=9, deadline_seconds=60, swires={"cutoff": 0.0})
    completion = ask(Idle(ended), config)
    assert (completion.text, completion.parsed.answer) == ("", None)


def test_no_candidates_is_no_setting():
    """N = 0 is refused as a setting, for the whole search and for a stage."""
    for keys in ({"candidates": 0}, {"keep": 0}, {"stages": {"CAPTION": {"candidates": 0}}}, {"max_search_tokens": 0}):
        with pytest.raises(ValueError, match="greater than 0"):
            SearchSection(**keys)


def test_two_pass_is_for_split_formats():
    """It is greedy decoding, pass by pass; elsewhere it is refused with the remedy."""
    engine = ScriptedEngine({"rationale": lambda *_: ("so", -1.0), "answer": lambda *_: ("4", -1.0)})
    completion = ask(engine, search("two_pass"), FORMATS["two_stage"])
    assert completion.parsed.answer == "4"
    assert {one.sampling for (one,) in engine.calls} == {Sampling()}
    with pytest.raises(SearchError, match="four_stage is written in one pass · use greedy, or a split format"):
        ask(engine, search("two_pass"))
