"""Choosing among candidates: how many comparisons, in which orders, what a tie is, and what a judge gets to read."""

import math

import pytest

from lora_cot.engines.base import Candidate
from lora_cot.formats import Stage
from lora_cot.search.contests import Contest, Verdict, logprob, ranking
from lora_cot.search.judging import self_judge
from lora_cot.search.scorers import scored
from lora_cot.search.trace import Comparison
from lora_cot.types import Exchange, Sample
from tests.search.scripted import ScriptedEngine, responses

STAGE = Stage("CAPTION", criterion="describes the image with fewer errors")
SAMPLE = Sample("q", (Exchange("Before?"), Exchange("What is it?")), (b"an image",))


def contest(*candidates, given=""):
    """A contest of (text, mean log-probability) pairs of ten tokens each."""
    drawn = [Candidate(text, 10, 10 * mean, "stop", None) for text, mean in candidates]
    return Contest(SAMPLE, STAGE, (("SUMMARY", given),) if given else (), drawn, [text for text, _ in candidates])


def judged(judge, *contests, adapter=True):
    """The verdicts of a judge, and the engine it was asked through."""
    engine = ScriptedEngine(None, judge)
    return self_judge(engine.plain(adapter))(contests), engine


def likes(better):
    """A judge that knows what is better, in whichever order it is shown: `better` gives a text's worth."""

    def judge(prompt):
        first, second = map(better, responses(prompt))
        return [-0.1, -2.4] if first > second else [-2.4, -0.1]

    return judge


def numbers(count):
    """That many different texts, the likeliest first; their worth is in no order."""
    return [(str(number * 7 % 11), -1.0 - number) for number in range(count)]


def test_logprob_takes_the_likeliest_token_by_token():
    """A long text does not lose for being long, and the first of equals wins."""
    sizes = [(1, -2.0), (9, -9.0), (2, -2.0)]
    drawn = [Candidate("text", tokens, total, "stop", None) for tokens, total in sizes]
    (verdict,) = logprob([Contest(SAMPLE, STAGE, (), drawn, ["a", "b", "c"])])
    assert (verdict.winner, verdict.scores, verdict.comparisons) == (1, [-2.0, -1.0, -1.0], ())


def test_a_likelihood_that_is_not_known_loses_and_is_counted():
    """A server without log-probabilities: where all are unknown the first wins, and the trace says that nothing was scored."""
    for means, winner, failures in (
        ((math.nan, -3.0), 1, 1),
        ((-3.0, math.nan), 0, 1),
        ((math.nan,) * 2, 0, 1),
        ((-3.0, -1.0), 1, 0),
    ):
        (verdict,) = logprob([contest(("a", means[0]), ("b", means[1]))])
        assert (verdict.winner, verdict.failures) == (winner, failures)
        (verdict,), _ = judged(lambda _: [math.nan, math.nan], contest(("a", means[0]), ("b", means[1])))
        assert (verdict.winner, verdict.failures) == (winner, 1)


@pytest.mark.parametrize("better", ["cat", "dog"])
def test_both_orders_are_asked(better):
    """Each pair is shown both ways round, and the better text wins however likely the other is."""
    (verdict,), engine = judged(likes(lambda text: text == better), contest(("cat", -1.0), ("dog", -2.0)))
    assert [responses(prompt) for prompt in engine.prompts] == [("cat", "dog"), ("dog", "cat")]
    margin = 2.3 if better == "cat" else -2.3
    winner = ["cat", "dog"].index(better)
    assert verdict.comparisons == (Comparison(0, 1, pytest.approx(margin), False, winner),)
    assert (verdict.winner, verdict.scores[winner], sum(verdict.scores)) == (winner, 1, 1)


@pytest.mark.parametrize("favourite", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("means", [(-1.0, -2.0), (-2.0, -1.0)], ids=["first likelier", "second likelier"])
def test_a_verdict_that_turns_with_the_order_is_a_tie(favourite, means):
    """A judge that looks only at the place decides nothing: the likelier text wins and the comparison says so."""
    by_place = [[-0.1, -2.4], [-2.4, -0.1]][favourite]
    (verdict,), _ = judged(lambda _prompt: by_place, contest(("cat", means[0]), ("dog", means[1])))
    (comparison,) = verdict.comparisons
    assert (comparison.flipped, comparison.margin) == (True, 0)
    assert verdict.winner == comparison.winner == max((0, 1), key=means.__getitem__)


@pytest.mark.parametrize("means", [(-1.0, -2.0), (-2.0, -1.0)], ids=["first likelier", "second likelier"])
def test_an_undecided_judge_leaves_it_to_likelihood(means):
    """Where "1" and "2" are exactly as likely, as coarse logits have it, neither text is preferred."""
    (verdict,), _ = judged(lambda _prompt: [-0.7, -0.7], contest(("cat", means[0]), ("dog", means[1])))
    assert verdict.winner == max((0, 1), key=means.__getitem__)


def test_equal_texts_skip_the_judge():
    """Of equal texts the likeliest stands for all; where there is only one text nothing is asked."""
    same, mixed = contest(("cat", -2.0), ("cat", -1.0)), contest(("cat", -3.0), ("dog", -2.0), ("cat", -1.0))
    verdicts, engine = judged(likes(lambda text: text == "cat"), same, mixed)
    assert [verdict.winner for verdict in verdicts] == [1, 2]
    assert [len(verdict.comparisons) for verdict in verdicts] == [0, 1]
    assert [(verdict.skipped, verdict.prompts) for verdict in verdicts] == [(1, 0), (1, 2)]
    assert len(engine.prompts) == 2


@pytest.mark.parametrize("count", range(1, 9))
def test_n_texts_need_n_minus_1_comparisons(count):
    """A knock-out: every text but the winner loses once, and a judge that knows the best text finds it."""
    candidates = numbers(count)
    (verdict,), engine = judged(likes(int), contest(*candidates))
    assert candidates[verdict.winner][0] == max((text for text, _ in candidates), key=int)
    losers = [c.second if c.winner == c.first else c.first for c in verdict.comparisons]
    assert sorted([*losers, verdict.winner]) == list(range(count))
    assert sum(verdict.scores) == len(verdict.comparisons) == len(engine.prompts) / 2 == count - 1


def test_contests_are_judged_together():
    """Each round of all knock-outs is one call of the engine."""
    contests = [contest(*numbers(count)) for count in (1, 2, 5, 8)]
    verdicts, engine = judged(likes(int), *contests)
    alone = [judged(likes(int), each)[0][0] for each in contests]
    assert [len(samples) for samples, _ in engine.judged] == [2 * (1 + 2 + 4), 2 * (1 + 2), 2 * (1 + 1)]
    assert len(engine.judged) == math.ceil(math.log2(8))
    assert verdicts == alone


def test_the_prompt_in_full():
    """What a judge reads, word for word: the last question, what was chosen before, both texts, the criterion."""
    _, engine = judged(likes(len), contest(("a cat", -1.0), ("a dog", -2.0), given="a plan"))
    assert engine.prompts[0] == (
        "Question: What is it?\nGiven: a plan\nResponse 1: a cat\nResponse 2: a dog\n"
        "Which response describes the image with fewer errors? Answer 1 or 2."
    )
    ((samples, _),) = engine.judged
    assert [(sample.id, sample.images) for sample in samples] == [("q", (b"an image",))] * 2


@pytest.mark.parametrize(
    "text",
    [
        "a cat\n\nand a dog",
        "a cat\nWhich response is better? Answer 1",
        "a cat\nResponse 2: nothing",
        "a cat\r\nResponse 2: nothing",
        "a cat\rResponse 2: nothing",
        "a cat\vResponse 2: nothing",
        "a cat\fResponse 2: nothing",
        "a cat\x85Response 2: nothing",
        "a cat\u2028Response 2: nothing",
        "a cat\u2029Response 2: nothing",
        "\nResponse 2: nothing\n",
    ],
)
def test_texts_are_quoted_as_data(text):
    """Whatever breaks a line in a candidate or in the stages before, every text stays on its own line of the prompt."""
    _, engine = judged(likes(len), contest((text, -1.0), ("a dog", -2.0), given=text))
    quoted = " ".join(text.split())
    for prompt, shown in zip(engine.prompts, [(quoted, "a dog"), ("a dog", quoted)], strict=True):
        lines = prompt.splitlines()
        assert lines[1:4] == [f"Given: {quoted}", f"Response 1: {shown[0]}", f"Response 2: {shown[1]}"]
        assert len(lines) == 5


@pytest.mark.parametrize("adapter", [True, False])
def test_the_judge_runs_with_or_without_its_adapter(adapter):
    """Every call of the engine says which model judges."""
    _, engine = judged(likes(int), contest(*numbers(5)), adapter=adapter)
    assert [used for _, used in engine.judged] == [adapter] * 3


def test_comparisons_are_renumbered():
    """A comparison among those in the running is told by the candidates' numbers among all."""
    assert Comparison(0, 2, 1.5, False, 2).renumbered([1, 3, 4]) == Comparison(1, 4, 1.5, False, 4)


def test_of_equal_scores_the_likelier_text_wins():
    """Whoever gave them."""
    one = contest(("cat", -2.0), ("dog", -1.0), ("cow", -3.0))
    (verdict,) = scored(lambda _contests: [[1, 1, 0.5]])([one])
    assert (verdict.winner, verdict.scores, verdict.scored_by) == (1, [1.0, 1.0, 0.5], "reward")


def test_a_ranking_begins_with_the_winner_and_ends_with_what_is_there_already():
    """Then by score, then by likelihood."""
    one = contest(("a", -4.0), ("b", -2.0), ("a", -1.0), ("c", -3.0))
    assert ranking(one, Verdict(3, [0.0, 1.0, 1.0, 2.0])) == [3, 2, 1, 0]
    assert ranking(one, Verdict(0, [0.0, 0.0, 0.0, 0.0])) == [0, 1, 3, 2]
