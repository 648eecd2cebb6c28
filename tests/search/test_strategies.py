"""Searches with a scripted engine: which path wins, what it cost, and how a search ends that cannot go on."""

import inspect
import json
import random
from typing import get_args

import pytest

from lora_cot.data.sources import SOURCES
from lora_cot.engines.base import Ask, Engine, Sampling
from lora_cot.errors import SearchError
from lora_cot.evaluation.benchmarks import BENCHMARKS
from lora_cot.formats import FORMATS
from lora_cot.recipe import load as recipe_load
from lora_cot.recipe.schema import AnySource, EvaluationSection, SearchSection
from lora_cot.recipe.search import ScorerName
from lora_cot.search.run import answer
from lora_cot.search.scorers import SCORERS
from lora_cot.search.strategies import STRATEGIES
from lora_cot.types import Exchange, Sample
from tests.search.scripted import ScriptedEngine, by_stage, check_accounts, plain, responses

FOUR_STAGE = FORMATS["four_stage"]
STAGES = [stage.name for stage in FOUR_STAGE.stages]
PATHS = {
    "SUMMARY": [("plan a", -2.0), ("plan b", -1.0), ("plan c", -3.0)],
    "CAPTION": [("a cat", -1.0), ("a dog", -2.0), ("a cow", -3.0)],
    "REASONING": [("hence 1", -3.0), ("hence 2", -2.0), ("hence 3", -1.0)],
    "CONCLUSION": [("1", -3.0), ("2", -1.0), ("3", -2.0)],
}


def question(name="q"):
    return Sample(name, (Exchange(f"What is {name}?"),), (b"an image",))


def beam(candidates=3, **keys):
    return SearchSection(strategy="stage_beam", candidates=candidates, **keys)


def ask(engine, config, cot_format=FOUR_STAGE):
    """The completion of one question."""
    (completion,) = answer(engine, cot_format, [question()], config)
    return completion


def with_stage(stage, *candidates):
    """The engine of `PATHS` with other candidates for one stage."""
    return ScriptedEngine(by_stage(PATHS | {stage: candidates}), prefers_last_letter)


def prefers_last_letter(prompt):
    """A judge that likes texts late in the alphabet, wherever they stand."""
    first, second = responses(prompt)
    return [-1.0, -2.0] if first > second else [-2.0, -1.0]


def wild(state, seed):
    """A script of few and random texts, some of them equal, some never closed."""
    rng = random.Random(f"{state}{seed}")
    stage = seed.split("/")[-2]
    end = f" </{stage}>" if rng.random() < 0.5 else ""
    return f"<{stage}> {rng.choice('abc')} {rng.choice(['', 'so on'])}{end}", rng.uniform(-3, 0)


def wild_judge(prompt):
    rng = random.Random(prompt)
    return [rng.uniform(-3, 0), rng.uniform(-3, 0)]


def test_the_scripted_engine_is_an_engine():
    """The tests' engine takes what the protocol says."""
    for name in ("for_pass", "plain", "start", "extend", "choose"):
        wanted = inspect.signature(getattr(Engine, name)).parameters
        assert list(inspect.signature(getattr(ScriptedEngine, name)).parameters) == list(wanted)


@pytest.mark.parametrize(
    ("scorer", "path"),
    [("logprob", ["plan b", "a cat", "hence 3", "2"]), ("self_judge", ["plan c", "a dog", "hence 3", "3"])],
)
def test_the_scorers_choice_is_the_root_of_the_next_stage(scorer, path):
    """Each stage goes on from the winner's state, and the winners make up the text."""
    engine = ScriptedEngine(by_stage(PATHS), prefers_last_letter)
    completion = ask(engine, beam(scorer=scorer))
    texts = [f"<{stage}> {text} </{stage}>" for stage, text in zip(STAGES, path, strict=True)]
    assert completion.text == "".join(texts)
    assert [stage.text for stage in completion.parsed.stages] == path
    assert (completion.stopped, completion.parsed.outcome) == ("complete", "complete")
    assert completion.parsed.answer == path[-1]
    states = [[ask.state for ask in asks] for asks in engine.calls]
    assert states == [[("q", "".join(texts[:number]))] for number in range(4)]
    assert [[c.text for c in step.candidates if c.chosen] for step in completion.trace] == [[text] for text in texts]


@pytest.mark.parametrize("scorer", ["logprob", "self_judge"])
@pytest.mark.parametrize("name", "abcdefgh")
def test_one_candidate_is_plain_staged_decoding(name, scorer):
    """With N = 1 the engine is asked exactly what a loop over the stages asks it, and no judge."""
    config = beam(candidates=1, seed=5, scorer=scorer)
    plain, searching, text = ScriptedEngine(wild), ScriptedEngine(wild), ""
    (state,) = plain.start([question(name)])
    for stage in FOUR_STAGE.stages:
        sampling, stop = Sampling(config.temperature, config.top_p), (FOUR_STAGE.closing(stage),)
        keep = stage.name != "CONCLUSION"
        ask = Ask(state, [f"5/{name}/{stage.name}/0"], stage.max_new_tokens, stop, sampling=sampling, keep_states=keep)
        (((candidate,),)) = plain.extend([ask])
        state, text = candidate.state, text + candidate.text
        if candidate.ended != "stop":
            break
    (completion,) = answer(searching, FOUR_STAGE, [question(name)], config)
    assert (completion.text, searching.calls, searching.judged) == (text, plain.calls, [])


def test_stages_can_differ_in_candidates_and_budget():
    """Every stage draws N candidates within its budget, except where the recipe says otherwise for one stage."""
    special = {"CAPTION": {"candidates": 3}, "REASONING": {"max_new_tokens": 7}, "CONCLUSION": {"temperature": 0}}
    engine = ScriptedEngine(by_stage(PATHS))
    ask(engine, beam(candidates=2, temperature=0.3, top_p=0.8, stages=special))
    asks = [ask for (ask,) in engine.calls]
    assert [len(ask.seeds) for ask in asks] == [2, 3, 2, 2]
    assert [ask.max_new_tokens for ask in asks] == [512, 512, 7, 256]
    assert [ask.stop for ask in asks] == [(f"</{stage}>",) for stage in STAGES]
    assert [ask.sampling.temperature for ask in asks] == [0.3, 0.3, 0.3, 0.0]
    assert {ask.sampling.top_p for ask in asks} == {0.8}


def test_seeds_tell_everything_apart():
    """No two candidates of a search share a seed, and another seed in the recipe changes all of them."""
    engine = ScriptedEngine(by_stage(PATHS))
    for seed in (0, 1):
        answer(engine, FOUR_STAGE, [question("a"), question("b")], beam(seed=seed))
    assert len(engine.seeds) == 2 * 2 * 4 * 3 == len(set(engine.seeds))


@pytest.mark.parametrize("scorer", ["logprob", "self_judge"])
def test_a_closed_candidate_beats_a_likelier_one_that_is_not(scorer):
    """A text that misses its closing tag loses to one that has it, is not judged, and stays in the trace."""
    engine = with_stage("CAPTION", ("zebras …", -0.1), ("a cat", -3.0), ("a dog", -2.0))
    completion = ask(engine, beam(scorer=scorer))
    step = completion.trace[1]
    assert [c.chosen for c in step.candidates] == [False, False, True]
    assert [c.closed for c in step.candidates] == [False, True, True]
    compared = [(c.first, c.second, c.winner) for c in step.comparisons]
    assert compared == ([(2, 1, 2)] if scorer == "self_judge" else [])
    assert not any("zebras" in prompt for prompt in engine.prompts)
    assert completion.stopped == "complete"


@pytest.mark.parametrize(("scorer", "best"), [("logprob", "a cow …"), ("self_judge", "a dog …")])
def test_a_stage_that_nobody_closes_ends_the_search(scorer, best):
    """The search stops there, says why, and gives back the best text so far."""
    engine = with_stage("CAPTION", ("a cat …", -3.0), ("a dog …", -2.0), ("a cow …", -1.0))
    completion = ask(engine, beam(scorer=scorer))
    assert completion.stopped == "no candidate closed CAPTION"
    assert completion.parsed.get("CAPTION").text == best
    assert (completion.parsed.outcome, completion.parsed.answer) == ("partial", None)
    assert len(engine.calls) == len(completion.trace) == 2


def test_a_search_is_bounded():
    """Candidates that never end cost N times the stage's budget, and no further stage is begun."""
    engine = ScriptedEngine(lambda _state, _seed: ("on and on " * 1000, -1.0))
    completion = ask(engine, beam(stages={"SUMMARY": {"max_new_tokens": 50}}))
    assert (completion.generated_tokens, completion.kept_tokens, len(engine.calls)) == (150, 50, 1)


def test_a_format_without_stages_is_refused():
    """Nothing is run, and the error says which strategies there are instead."""
    engine = ScriptedEngine(by_stage(PATHS))
    with pytest.raises(SearchError, match="direct has no stages to search · use greedy or sample, or a format with"):
        ask(engine, beam(), FORMATS["direct"])
    assert engine.calls == []


BATCHED = {"logprob": beam(), "judge": beam(scorer="self_judge"), "greedy": SearchSection()}


@pytest.mark.parametrize("config", BATCHED.values(), ids=BATCHED)
def test_a_batch_gives_what_its_questions_give_alone(config):
    """Completions do not depend on which other questions are answered with them, whenever those end."""
    samples = [question(f"q{number}") for number in range(12)]
    config = config.model_copy(update={"candidates": 3})
    script = by_stage({"all": [("x", -1.0)]}) if config.strategy == "greedy" else wild
    together = answer(ScriptedEngine(script, wild_judge), FOUR_STAGE, samples, config)
    alone = [answer(ScriptedEngine(script, wild_judge), FOUR_STAGE, [sample], config)[0] for sample in samples]
    assert plain(together) == plain(alone)
    if config.strategy == "stage_beam":
        assert {c.stopped == "complete" for c in together} == {True, False}, "the script should do both"


def test_stages_are_told_as_they_are_decided():
    """`on_stage` hears of each question's stages in order, and of none after the search has ended."""
    told = []
    engine = with_stage("REASONING", ("a …", -1.0))
    completions = answer(
        engine, FOUR_STAGE, [question("a"), question("b")], beam(1), lambda number, stage: told.append((number, stage))
    )
    assert [(number, stage.stage) for number, stage in told] == [(n, stage) for stage in STAGES[:3] for n in (0, 1)]
    for number, completion in enumerate(completions):
        assert [stage for told_number, stage in told if told_number == number] == completion.trace


@pytest.mark.parametrize("scorer", ["logprob", "self_judge"])
def test_costs_add_up(scorer):
    """Generated tokens are those of all candidates, kept ones those of the text; a judge call is one prompt."""
    samples = [question(f"q{number}") for number in range(12)]
    engine = ScriptedEngine(wild, wild_judge)
    completions = answer(engine, FOUR_STAGE, samples, beam(scorer=scorer))
    for completion in completions:
        assert check_accounts(completion, engine) == completion.text
        assert completion.kept_tokens == len(completion.text.replace("><", "> <").split())
        assert [len(step.candidates) for step in completion.trace] == [3] * len(completion.trace)
        assert completion.seconds > 0
    assert sum(c.judge_calls for c in completions) == len(engine.prompts)
    assert (len(engine.prompts) > 0) == (scorer == "self_judge")


def test_the_judge_is_given_the_stages_before():
    """A judge sees the question, its image and the text chosen so far, tags left out; the first stage has none."""
    engine = ScriptedEngine(by_stage(PATHS), prefers_last_letter)
    ask(engine, beam(scorer="self_judge"))
    given = [[line for line in prompt.splitlines() if line.startswith("Given: ")] for prompt in engine.prompts[::4]]
    assert given == [[], ["Given: plan c"], ["Given: plan c a dog"], ["Given: plan c a dog hence 3"]]
    assert all(prompt.startswith("Question: What is q?\n") for prompt in engine.prompts)
    assert {sample.images for samples, _ in engine.judged for sample in samples} == {(b"an image",)}


@pytest.mark.parametrize("adapter", [True, False])
def test_the_judge_can_be_the_base(adapter):
    """`judge_adapter` off asks the engine to judge without its adapter."""
    engine = ScriptedEngine(by_stage(PATHS), prefers_last_letter)
    ask(engine, beam(scorer="self_judge", judge_adapter=adapter))
    assert {used for _, used in engine.judged} == {adapter}


@pytest.mark.parametrize(("strategy", "sampling"), [("greedy", Sampling(0.0, 1.0)), ("sample", Sampling(0.3, 0.8))])
def test_one_pass_draws_one_whole_text(strategy, sampling):
    """Greedy and sample draw one text to its end, with the budgets of all stages together."""
    engine = ScriptedEngine(lambda _state, _seed: ("<SUMMARY> s </SUMMARY>", -1.0))
    config = SearchSection(strategy=strategy, temperature=0.3, top_p=0.8, stages={"SUMMARY": {"max_new_tokens": 8}})
    completion = ask(engine, config)
    ((call,),) = engine.calls
    assert (call.seeds, call.stop, call.sampling, call.keep_states) == (["0/q/all/0"], (), sampling, False)
    assert call.max_new_tokens == 8 + 512 + 1024 + 256
    assert (completion.stopped, completion.parsed.outcome) == ("complete", "partial")
    assert (completion.generated_tokens, completion.kept_tokens, completion.judge_calls) == (3, 3, 0)


def test_one_pass_without_an_end_says_so():
    """A text that was cut at its budget is returned with the reason."""
    engine = ScriptedEngine(lambda _state, _seed: ("on and on " * 1000, -1.0))
    completion = ask(engine, SearchSection(stages={"ANSWER": {"max_new_tokens": 5}}), FORMATS["direct"])
    assert (completion.stopped, completion.parsed.answer) == ("no end after 5 tokens", "on and on on and")


def test_tags_follow_the_formats_spelling():
    """Formats of tokenizers without `<` are searched by their own tags."""
    script = by_stage(PATHS)
    spelled = ScriptedEngine(lambda state, seed: (script(state, seed)[0].translate({60: "[", 62: "]"}), -1.0))
    completion = ask(spelled, beam(), FOUR_STAGE.spelled("brackets"))
    assert [ask.stop for (ask,) in spelled.calls] == [(f"[/{stage}]",) for stage in STAGES]
    assert completion.parsed.outcome == "complete"


def test_a_trace_turns_into_json():
    """What a search did is plain values, those of a candidate that was out of the running included."""
    engine = with_stage("CAPTION", ("a cat …", -1.0), ("a cat", -2.0), ("a cat", -2.0))
    completion = ask(engine, beam())
    assert json.loads(json.dumps(completion.to_json(), allow_nan=False)) == completion.to_json()


def test_names_in_recipes_are_those_of_the_tables():
    """What a recipe may name exists, and what exists can be named."""
    search, evaluation = SearchSection.model_fields, EvaluationSection.model_fields
    sections = get_args(get_args(AnySource)[0])
    sources = {get_args(section.model_fields["source"].annotation)[0] for section in sections}
    assert set(get_args(search["strategy"].annotation)) == set(STRATEGIES)
    assert set(get_args(ScorerName)) == set(SCORERS)
    assert set(get_args(evaluation["benchmark"].annotation)) == set(BENCHMARKS)
    assert sources == set(SOURCES) == set(recipe_load.SOURCES)
    assert {name: cot_format.name for name, cot_format in FORMATS.items()} == {name: name for name in FORMATS}
