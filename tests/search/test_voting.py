"""Votes: what counts as the same answer, who wins a tie, and when there is nothing more to ask."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_cot.errors import SearchError
from lora_cot.formats import FORMATS
from lora_cot.formats.answers import ballot
from lora_cot.recipe.schema import SearchSection
from lora_cot.search import budget
from lora_cot.search.run import answer
from lora_cot.search.voting import is_safe, lead
from lora_cot.types import Exchange, Sample
from tests.search.scripted import Clock, ScriptedEngine, check_accounts

FOUR_STAGE = FORMATS["four_stage"]
CHOICES = ("red", "blue", "green")


def four(conclusion):
    return f"<SUMMARY> s </SUMMARY> <CAPTION> c </CAPTION> <REASONING> r </REASONING> <CONCLUSION> {conclusion} </CONCLUSION>"


def vote(*texts, strategy="majority", scorer=None, **keys):
    """The completion of one question for which these (conclusion, mean log-probability) are drawn, and its engine."""

    def script(_state, seed):
        text, mean = texts[int(seed.split("/")[-1])]
        return (text if "<" in text else four(text)), mean

    engine = ScriptedEngine(script)
    sample = Sample("q", (Exchange("Which colour?"),), choices=CHOICES)
    config = SearchSection(strategy=strategy, candidates=len(texts), **keys)
    (completion,) = answer(engine, FOUR_STAGE, [sample], config, scorer=scorer)
    assert check_accounts(completion, engine) == completion.text
    return completion, engine


SAME = {
    "letters": (["B", "(B)", "b.", "The answer is (B).", "B: blue", "blue", "Blue."], CHOICES, "b"),
    "letters without options": (["B", "(B)", "b.", "The answer is (B)."], (), "b"),
    "numbers": (["3", "3.0", "3.", "three", "Three.", "**3**"], (), "3.0"),
    "thousands": (["1,000", "1000", "1000.00"], (), "1000.0"),
    "yes": (["yes", "Yes.", "Yes, it is.", "yes!", "'Yes'"], (), "yes"),
    "no": (["no", "No.", "No; there are two."], (), "no"),
    "words": (["a red square", "Red  square.", "the red square", '"red square"', "red\nsquare"], (), "red square"),
}


@pytest.mark.parametrize(("texts", "choices", "found"), SAME.values(), ids=SAME)
def test_answers_that_mean_the_same(texts, choices, found):
    """However they are written, they are one vote."""
    assert {ballot(text, choices) for text in texts} == {found}


@pytest.mark.parametrize("text", [None, "", " . ", '""', "!", "**"])
def test_no_answer_has_no_vote(text):
    """Nothing, or nothing but marks."""
    assert ballot(text) is None


def test_different_answers_stay_different():
    """What only looks alike is not the same."""
    answers = ["no", "no dogs", "none", "3", "-3", "30%", "0.3", "a", "an apple", "the", "yes and no", "B", "both"]
    assert len({ballot(text) for text in answers}) == len(answers)


@given(st.text(max_size=30))
def test_a_ballot_is_what_it_votes_for(text):
    """Normalising twice changes nothing, and neither do case nor space around."""
    found = ballot(text)
    assert found is None or ballot(found) == found
    assert ballot(f"  {text} ") == found


def test_the_answer_of_most_wins():
    """However likely the others are; the text is the best one with that answer."""
    completion, engine = vote(("A", -0.1), ("B", -3.0), ("(B)", -2.0), ("C", -0.2))
    assert (completion.text, completion.stopped) == (four("(B)"), "complete")
    (step,) = completion.trace
    assert [c.answer for c in step.candidates] == ["a", "b", "b", "c"]
    assert [c.chosen for c in step.candidates] == [False, False, True, False]
    assert len(engine.calls) == 1 and len(engine.seeds) == 4


@pytest.mark.parametrize(("means", "winner"), [((-1.0, -2.0), "A"), ((-2.0, -1.0), "B")])
def test_a_tie_goes_to_the_better_score(means, winner):
    """And never to chance or to whoever came first."""
    completion, _ = vote(("A", means[0]), ("B", means[1]), ("A", -9.0), ("B", -9.0))
    assert completion.parsed.answer == winner


def test_weighted_votes_count_by_their_score():
    """Two unlikely votes are less than one likely one; without weights they win."""
    texts = (("A", math.log(0.9)), ("B", math.log(0.4)), ("B", math.log(0.4)))
    assert vote(*texts)[0].parsed.answer == "B"
    assert vote(*texts, weighted=True)[0].parsed.answer == "A"
    more = (*texts, ("B", math.log(0.2)))
    assert vote(*more, weighted=True)[0].parsed.answer == "B"


def test_rewards_are_weights_as_they_are():
    """A function's scores weigh the votes, one below zero nothing, and the best one with the answer is returned."""
    worth = {"A": 1.5, "B": 1.0, "(B)": 0.7, "C": -3.0}
    scorer = lambda contests: [[worth[text.split()[-2]] for text in contest.texts] for contest in contests]  # noqa: E731
    completion, _ = vote(("A", -1.0), ("B", -9.0), ("(B)", -1.0), ("C", -0.1), weighted=True, scorer=scorer)
    assert completion.text == four("B") and completion.trace[0].scored_by == "reward"
    worth = {"A": 0.5, "B": 1.0, "(B)": -0.9}
    assert vote(("A", -1.0), ("B", -1.0), ("(B)", -1.0), weighted=True, scorer=scorer)[0].parsed.answer == "B"
    worth = {"A": 1.5, "C": -3.0}
    assert vote(("C", -9.0), ("C", -1.0), ("A", -5.0), weighted=True, scorer=scorer)[0].parsed.answer == "A"


def test_a_judge_decides_ties_and_nothing_else():
    """Only texts with a leading answer are compared; pairs have no weight that votes could count by."""
    completion, engine = judged_vote()
    assert completion.parsed.answer == "A"
    assert all(four("B") not in prompt for prompt in engine.prompts)
    with pytest.raises(SearchError, match="no weight to a vote · use logprob or reward"):
        judged_vote(weighted=True)


def judged_vote(**keys):
    def script(_state, seed):
        return [(four("A"), -1.0), (four("A") + " ", -2.0), (four("A, red"), -3.0), (four("B"), -0.1)][int(seed[-1])]

    engine = ScriptedEngine(script, lambda _prompt: [0.0, -1.0])
    config = SearchSection(strategy="majority", candidates=4, scorer="self_judge", **keys)
    (completion,) = answer(engine, FOUR_STAGE, [Sample("q", (Exchange("?"),), choices=CHOICES)], config)
    return completion, engine


def test_unfinished_and_missing_answers_have_no_vote():
    """A conclusion that was cut does not count, one that the model ended without its tag does; without any vote the best
    text is returned."""
    cut, short = "<CONCLUSION> B" + " and" * 20, {stage.name: {"max_new_tokens": 4} for stage in FOUR_STAGE.stages}
    completion, _ = vote((cut, -0.1), (cut, -0.1), ("A", -9.0), stages=short)
    assert completion.parsed.answer == "A"
    assert [c.answer for c in completion.trace[0].candidates] == [None, None, "a"]
    assert vote(("<CONCLUSION> B", -5.0), ("<CONCLUSION> B", -5.0), ("A", -0.1))[0].parsed.answer == "B"
    nobody, _ = vote(("<SUMMARY> x", -2.0), ("<SUMMARY> y", -1.0))
    assert (nobody.text, nobody.stopped) == ("<SUMMARY> y", "complete")


@pytest.mark.parametrize(
    ("answers", "drawn"),
    [
        ("AAAAAAAA", 2),
        ("ABAAAAAA", 8),
        ("ABBBBBBB", 8),
        ("ABAAAAAAAAAAAAAA", 8),
        ("ABABABAB", 8),
        ("A", 1),
        ("AB", 2),
        ("ABC", 3),
    ],
)
def test_adaptive_draws_while_they_disagree(answers, drawn):
    """In rounds of two, up to N, with the seeds that majority would use."""
    completion, engine = vote(*((one, -1.0) for one in answers), strategy="adaptive")
    assert len(completion.trace[0].candidates) == drawn
    assert completion.trace[0].rounds == math.ceil(drawn / 2)
    assert engine.seeds == [f"0/q/all/{number}" for number in range(drawn)]
    _, other = vote(*((one, -1.0) for one in answers))
    assert other.seeds[:drawn] == engine.seeds


def test_the_lead_is_the_beta_posterior():
    """P(share > 1/2) under Beta(a + 1, b + 1), against an integral by hand and by chance."""
    assert lead(0, 0) == 0.5 and lead(4, 0) == 31 / 32 and lead(2, 1) == 11 / 16
    draws = random.Random(0)
    found = sum(draws.betavariate(6, 2) > 0.5 for _ in range(20000)) / 20000
    assert lead(5, 1) == pytest.approx(found, abs=0.01)


@pytest.mark.parametrize(
    ("votes", "confidence", "safe"),
    [
        ({}, 0.5, False),
        ({"a": 1}, 0.5, False),
        ({"a": 2}, 0.99, True),
        ({"a": 6, "b": 1}, 0.95, True),
        ({"a": 5, "b": 1}, 0.95, False),
        ({"a": 5, "b": 1}, 0.9, True),
        ({"b": 1, "a": 6, "c": 1}, 0.95, True),
        ({"a": 3, "b": 3}, 0.6, False),
    ],
)
def test_when_a_lead_is_safe(votes, confidence, safe):
    """All votes for one answer, two at least; or a lead over the second that is likely enough."""
    assert is_safe(votes, confidence) == safe


def test_whole_answers_are_the_same_candidates_in_every_strategy():
    """So best of N, majority and adaptive can be compared at equal tokens."""
    texts = [(letter, -1.0 - number) for number, letter in enumerate("ABCABC")]
    found = {name: vote(*texts, strategy=name) for name in ("best_of_n", "majority", "adaptive")}
    assert len({tuple(engine.seeds) for _, engine in found.values()}) == 1
    assert len({completion.generated_tokens for completion, _ in found.values()}) == 1


@pytest.mark.parametrize("strategy", ["majority", "adaptive"])
def test_votes_within_a_budget(strategy):
    """What has a vote by then decides; the tokens are not exceeded, and the reason is told if nothing was whole."""
    tokens = len(four("A").split())
    completion, _ = vote(*[("A", -1.0)] * 4, strategy=strategy, max_search_tokens=tokens + 3)
    assert completion.generated_tokens <= tokens + 3
    assert completion.stopped == f"out of tokens: max_search_tokens is {tokens + 3}"
    enough, _ = vote(*[("A", -1.0), ("B", -1.0)] * 2, strategy=strategy, max_search_tokens=5 * tokens)
    assert (enough.parsed.answer, enough.stopped) == ("A", "complete")


def test_adaptive_within_a_deadline(monkeypatch):
    """What was drawn by then decides, and the reason says that more would have been asked."""
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    engine = ScriptedEngine(lambda _state, seed: (four("AB"[int(seed[-1]) % 2]), -1.0), clock=clock)
    config = SearchSection(strategy="adaptive", candidates=8, deadline_seconds=15)
    (completion,) = answer(engine, FOUR_STAGE, [Sample("q", (Exchange("?"),), choices=CHOICES)], config)
    assert (completion.parsed.answer, completion.stopped) == ("A", "out of time: deadline_seconds is 15")
    assert [c.ended for c in completion.trace[0].candidates] == ["end", "end", "deadline", "deadline"]
