"""Searches of a split format: each pass reads what the one before wrote, and nothing that was written for it."""

import random

import pytest

from lora_cot.engines.base import Sampling
from lora_cot.errors import SearchError
from lora_cot.formats import FORMATS, CotFormat, Stage
from lora_cot.recipe.schema import SearchSection
from lora_cot.search.run import answer
from lora_cot.search.trace import TracedStage
from lora_cot.types import Exchange, Sample
from tests.search.scripted import ScriptedEngine, check_accounts, plain, responses

TWO_STAGE = FORMATS["two_stage"]
GOLD = {"RATIONALE": "gold", "ANSWER": "gold", "SUMMARY": "gold", "CAPTION": "gold", "REASONING": "gold"}
THREE = CotFormat("three", (Stage("A", cue="a:"), Stage("B", cue="b:"), Stage("C", cue="c:", is_answer=True)), split=True)


def question(name="q", **keys):
    return Sample(name, (Exchange(f"What is {name}?", stages=GOLD, answer="gold"),), (b"an image",), **keys)


def says(*texts):
    """A script that draws the texts in turn, each likelier than the one before."""
    return lambda _state, seed: (texts[int(seed.split("/")[-1])], float(int(seed.split("/")[-1]) - len(texts)))


def for_each(**texts):
    """A script that says another text for each question."""
    return lambda state, _seed: (texts[state[0]], -1.0)


def two_pass(rationale, final):
    return ScriptedEngine({"rationale": rationale, "answer": final})


def beam(candidates=2, **keys):
    return SearchSection(strategy="stage_beam", candidates=candidates, **keys)


STRATEGIES = {"greedy": SearchSection(), "sample": SearchSection(strategy="sample"), "stage_beam": beam(1)}
each_strategy = pytest.mark.parametrize("config", STRATEGIES.values(), ids=STRATEGIES)


@each_strategy
def test_a_pass_reads_what_the_one_before_wrote(config):
    """The second prompt holds the text of the first pass, as it was chosen, and no gold text."""
    engine = two_pass(says(" two and two\n"), says("4"))
    (completion,) = answer(engine, TWO_STAGE, [question(choices=("3", "4"))], config)
    first = "Question: What is q?\nOptions: (A) 3 (B) 4\nSolution:"
    assert engine.asked == [("rationale", {"q": first}), ("answer", {"q": f"{first} two and two\nAnswer:"})]
    assert completion.text == "<RATIONALE> two and two </RATIONALE>\n\n<ANSWER> 4 </ANSWER>"
    assert (completion.stopped, completion.parsed.outcome, completion.parsed.answer) == ("complete", "complete", "4")


@each_strategy
def test_the_passes_of_three(config):
    """Every pass has a prompt with all that was written before, in its own engine."""
    engine = ScriptedEngine({name: says(name * 2) for name in "abc"})
    (completion,) = answer(engine, THREE, [question()], config)
    prompts = [prompt["q"].splitlines()[1:] for _, prompt in engine.asked]
    assert prompts == [["a:"], ["a: aa", "b:"], ["a: aa", "b: bb", "c:"]]
    assert completion.text == "<A> aa </A>\n\n<B> bb </B>\n\n<C> cc </C>"
    assert [step.stage for step in completion.trace] == ["A", "B", "C"]


def test_a_step_within_a_pass_knows_its_stage():
    """Its name in the trace says both; a whole text of a format in one pass is of no stage."""
    config = SearchSection(strategy="sentence_beam", candidates=1)
    (completion,) = answer(two_pass(says("one"), says("4")), TWO_STAGE, [question()], config)
    found = [(step.stage, step.stage_name) for step in completion.trace]
    assert found == [("RATIONALE · sentence 1", "RATIONALE"), ("ANSWER · sentence 1", "ANSWER")]
    assert TracedStage(None, ()).stage_name == ""


@pytest.mark.parametrize("empty", ["", " \n "])
@each_strategy
def test_an_empty_rationale_ends_its_question_alone(config, empty):
    """The reason is given, no answer is asked for, and the other questions go on."""
    engine = two_pass(for_each(a="for a", b=empty, c="for c"), for_each(a="1", c="3"))
    found = answer(engine, TWO_STAGE, [question(name) for name in "abc"], config)
    assert [completion.stopped for completion in found] == ["complete", "RATIONALE is empty", "complete"]
    assert [completion.parsed.answer for completion in found] == ["1", None, "3"]
    solutions = {name: prompt.splitlines()[1] for name, prompt in engine.asked[1][1].items()}
    assert solutions == {"a": "Solution: for a", "c": "Solution: for c"}
    assert found[1].parsed.outcome != "complete" and found[1].sample_id == "b"
    assert [step.stage for step in found[1].trace] == ["RATIONALE"]


@pytest.mark.parametrize("config", [SearchSection(), beam(2)], ids=["greedy", "stage_beam"])
def test_an_unfinished_rationale_is_handed_on_as_it_is(config):
    """What was cut at its budget is what the answer goes on from; the trace tells that it had no end."""
    config = SearchSection(**{**config.model_dump(), "stages": {"RATIONALE": {"max_new_tokens": 3}}})
    engine = two_pass(lambda state, _seed: ("on and on and on" if state[0] == "b" else "so", -1.0), says("1", "1"))
    found = answer(engine, TWO_STAGE, [question("a"), question("b")], config)
    solutions = {name: prompt.splitlines()[1] for name, prompt in engine.asked[1][1].items()}
    assert solutions == {"a": "Solution: so", "b": "Solution: on and on"}
    assert [completion.parsed.answer for completion in found] == ["1", "1"]
    assert found[1].text == "<RATIONALE> on and on </RATIONALE>\n\n<ANSWER> 1 </ANSWER>"
    assert [c.stopped for c in found] == ["complete", "no end after 3 tokens"]
    chosen = [[c.closed for step in completion.trace for c in step.candidates if c.chosen] for completion in found]
    assert chosen == [[True, True], [False, True]]


def test_an_unfinished_answer_is_left_open():
    """The last pass is cut at its own budget; the rationale before it stays closed."""
    engine = two_pass(says("so"), says("1 2 3 4 5"))
    config = SearchSection(stages={"ANSWER": {"max_new_tokens": 2}})
    (completion,) = answer(engine, TWO_STAGE, [question()], config)
    assert completion.text == "<RATIONALE> so </RATIONALE>\n\n<ANSWER> 1 2"
    assert completion.stopped == "no end after 2 tokens"
    assert completion.parsed.outcome == "partial"


def test_when_every_question_has_ended_no_pass_is_begun():
    """An engine is never asked about nothing."""
    engine = two_pass(says(""), says("1"))
    found = answer(engine, TWO_STAGE, [question("a"), question("b")], SearchSection())
    assert [name for name, _ in engine.asked] == ["rationale"]
    assert {completion.stopped for completion in found} == {"RATIONALE is empty"}


def test_each_pass_has_the_budget_of_its_stage():
    """The format's own, or the recipe's for that stage; nothing is asked to stop at a tag that a pass does not write."""
    engine = two_pass(says("so"), says("1"))
    answer(engine, TWO_STAGE, [question()], SearchSection(stages={"ANSWER": {"max_new_tokens": 7}}))
    asks = [ask for (ask,) in engine.calls]
    assert [(ask.max_new_tokens, ask.stop) for ask in asks] == [(1024, ()), (7, ())]
    assert {ask.sampling for ask in asks} == {Sampling(0.0, 1.0)}


def wild(state, seed):
    """A script of few and random texts; in some passes of some questions all of them are empty."""
    rng, step = random.Random(f"{state}{seed}"), seed.split("/")[-2]
    empty = random.Random(f"{state}{step}").random() < 0.3
    return "" if empty else rng.choice(["a", "b b", "c c c"]), rng.uniform(-3, 0)


def wild_judge(prompt):
    rng = random.Random(prompt)
    return [rng.uniform(-3, 0), rng.uniform(-3, 0)]


BEAMS = {"logprob": beam(3), "self_judge": beam(3, scorer="self_judge")}


@pytest.mark.parametrize("config", BEAMS.values(), ids=BEAMS)
def test_costs_of_passes_add_up(config):
    """Tokens, candidates and judge calls of all passes are counted, and are in the trace."""
    engine = ScriptedEngine({"rationale": wild, "answer": wild}, wild_judge)
    found = answer(engine, TWO_STAGE, [question(f"q{number}") for number in range(12)], config)
    assert {completion.stopped for completion in found} == {"complete", "RATIONALE is empty", "ANSWER is empty"}
    for completion in found:
        check_accounts(completion, engine)
        assert completion.judge_calls == 2 * sum(len(step.comparisons) for step in completion.trace)
        assert [len(step.candidates) for step in completion.trace] == [3] * len(completion.trace)
        assert completion.seconds > 0
    assert sum(completion.judge_calls for completion in found) == len(engine.prompts)
    assert (len(engine.prompts) > 0) == (config.scorer == "self_judge")


@pytest.mark.parametrize("config", [*BEAMS.values(), SearchSection()], ids=[*BEAMS, "greedy"])
def test_a_batch_gives_what_its_questions_give_alone(config):
    """Completions do not depend on which other questions are answered with them, whenever those end."""
    samples = [question(f"q{number}") for number in range(12)]
    engine = ScriptedEngine({"rationale": wild, "answer": wild}, wild_judge)
    together = answer(engine, TWO_STAGE, samples, config)
    alone = [answer(engine, TWO_STAGE, [sample], config)[0] for sample in samples]
    assert plain(together) == plain(alone)


@each_strategy
def test_stages_are_told_as_they_are_decided(config):
    """`on_stage` hears of each pass by its stage's name, and of each question by its own number, also after others ended."""
    told = []
    engine = two_pass(for_each(a="for a", b="", c="for c"), for_each(a="1", c="3"))
    found = answer(engine, TWO_STAGE, [question(n) for n in "abc"], config, lambda number, step: told.append((number, step)))
    assert [(number, step.stage) for number, step in told] == [
        *((number, "RATIONALE") for number in range(3)),
        *((number, "ANSWER") for number in (0, 2)),
    ]
    for number, completion in enumerate(found):
        assert [step for told_number, step in told if told_number == number] == completion.trace


def test_a_beam_chooses_in_each_pass():
    """The likeliest rationale is the one that the answers are drawn for, and the likeliest answer is the answer."""
    rationales = [("r0", -3.0), ("r1", -1.0), ("r2", -2.0)]
    engine = two_pass(
        lambda _state, seed: rationales[int(seed.split("/")[-1])], lambda _state, seed: (seed.split("/")[-1], -1.0)
    )
    (completion,) = answer(engine, TWO_STAGE, [question()], beam(3))
    assert [[c.chosen for c in step.candidates] for step in completion.trace] == [[False, True, False], [True, False, False]]
    assert engine.asked[1][1]["q"].splitlines()[1:] == ["Solution: r1", "Answer:"]
    assert (completion.kept_tokens, completion.generated_tokens) == (2, 6)


def test_candidates_can_differ_between_passes():
    """A stage's own number of candidates is that of its pass."""
    engine = two_pass(says("a", "b"), says("1", "2", "3"))
    answer(engine, TWO_STAGE, [question()], beam(2, stages={"ANSWER": {"candidates": 3}}))
    assert [len(ask.seeds) for (ask,) in engine.calls] == [2, 3]


def test_a_judge_chooses_in_each_pass():
    """Candidates of a pass are shown to the judge without tags, with the criterion of their stage."""

    def last_letter(prompt):
        first, second = responses(prompt)
        return [-1.0, -2.0] if first > second else [-2.0, -1.0]

    engine = ScriptedEngine({"rationale": says("x", "z", "y"), "answer": says("3", "1", "2")}, last_letter)
    (completion,) = answer(engine, TWO_STAGE, [question()], beam(3, scorer="self_judge"))
    assert completion.text == "<RATIONALE> z </RATIONALE>\n\n<ANSWER> 3 </ANSWER>"
    assert completion.judge_calls == len(engine.prompts) == 8
    criteria = [stage.criterion for stage in TWO_STAGE.stages]
    assert [[text in prompt for text in criteria] for prompt in engine.prompts] == [[True, False]] * 4 + [[False, True]] * 4


def test_the_judge_of_an_answer_is_given_the_rationale():
    """As in a format of one pass, a judge sees what the candidates go on from."""
    engine = ScriptedEngine({"rationale": says("because"), "answer": says("1", "2")}, wild_judge)
    answer(engine, TWO_STAGE, [question()], beam(2, scorer="self_judge", stages={"RATIONALE": {"candidates": 1}}))
    assert len(engine.prompts) == 2
    assert all("because" in prompt and "gold" not in prompt for prompt in engine.prompts)


@pytest.mark.parametrize("config", [STRATEGIES["sample"], beam(3)], ids=["sample", "stage_beam"])
def test_seeds_tell_passes_apart(config):
    """No two candidates of a search share a seed, and another seed in the recipe changes all of them."""
    engine = two_pass(says("a", "b", "c"), says("1", "2", "3"))
    for seed in (0, 1):
        answer(engine, TWO_STAGE, [question("a"), question("b")], config.model_copy(update={"seed": seed}))
    count = 2 * 2 * 2 * (3 if config.strategy == "stage_beam" else 1)
    assert len(engine.seeds) == count == len(set(engine.seeds))


def test_a_pass_without_stages_to_search_is_still_refused():
    """A stage search needs a format with stages, whatever passes there are."""
    with pytest.raises(SearchError, match="direct has no stages to search · use greedy or sample, or a format with"):
        answer(ScriptedEngine({}), FORMATS["direct"], [question()], beam())


def test_a_pass_that_the_engine_broke_off_is_the_last():
    """Its text is kept, no answer is asked for, and the other questions go on."""
    broken = lambda state, _seed: ("so f", -1.0, "gone") if state[0] == "b" else ("so", -1.0)  # noqa: E731
    engine = two_pass(broken, says("1"))
    found = answer(engine, TWO_STAGE, [question("a"), question("b")], SearchSection())
    assert [c.stopped for c in found] == ["complete", "the engine gave no text: gone"]
    assert found[1].text == "<RATIONALE> so f" and list(engine.asked[1][1]) == ["a"]


def test_candidates_of_a_later_pass_go_on_from_the_one_before():
    """In the trace: their parent is what the pass before ended with."""
    engine = two_pass(says("a", "b"), says("1", "2"))
    (completion,) = answer(engine, TWO_STAGE, [question()], beam(2))
    assert [[c.parent for c in step.candidates] for step in completion.trace] == [[None, None], [1, 1]]


def test_the_first_reason_is_told():
    """Of two passes that were cut."""
    engine = two_pass(says("so on"), says("1 2 3"))
    budgets = {"RATIONALE": {"max_new_tokens": 1}, "ANSWER": {"max_new_tokens": 2}}
    (completion,) = answer(engine, TWO_STAGE, [question()], SearchSection(stages=budgets))
    assert completion.stopped == "no end after 1 tokens"
