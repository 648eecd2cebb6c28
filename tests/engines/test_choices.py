"""From a server's words to candidates: texts end where they were asked to, numbers are possible, odds are read."""

import math

import pytest

from lora_cot.engines.base import Ask
from lora_cot.engines.choices import count, option_logprobs, read_end
from lora_cot.engines.completions import Answer, Reply, Token, read_answer
from lora_cot.errors import EngineError

ASK = Ask(None, ["a"], 8, ("</A>", "</B>"))
SENTENCES = Ask(None, ["a"], 8, ("</A>",), sentences=True)

ENDS = [
    (ASK, Reply("x </A>", "stop"), ("x </A>", "stop")),
    (ASK, Reply("x </A> more </B>", "length"), ("x </A>", "stop")),
    (ASK, Reply("x </B> more </A>", "stop"), ("x </B>", "stop")),
    (ASK, Reply("x ", "stop", stopped_at="</B>"), ("x </B>", "stop")),
    (ASK, Reply("x", "stop"), ("x", "end")),
    (ASK, Reply("x", "stop", stopped_at=2), ("x", "end")),
    (ASK, Reply("", "stop"), ("", "end")),
    (ASK, Reply("x", "length"), ("x", "length")),
    (ASK, Reply("One. Two", "length"), ("One. Two", "length")),
    (SENTENCES, Reply("One. ", "stop"), ("One.", "sentence")),
    (SENTENCES, Reply("One?\n", "stop"), ("One?", "sentence")),
    (SENTENCES, Reply("One", "stop", stopped_at="! "), ("One!", "sentence")),
    (SENTENCES, Reply("1.5 </A>", "stop"), ("1.5 </A>", "stop")),
    (SENTENCES, Reply("One. Two </A>", "stop"), ("One.", "sentence")),
]


@pytest.mark.parametrize(("ask", "reply", "wanted"), ENDS)
def test_ends(ask, reply, wanted):
    """The first stop string ends a text, whether the server kept it, took it away or went on."""
    assert read_end(reply, ask) == wanted


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply("x", "content_filter"), "ended with 'content_filter'"),
        (Reply("", "", "I will\nnot"), "no whole text: I will not"),
        (Reply("x"), "it has no end"),
        (Reply("x", "stop", stopped_at="</C>"), "stopped at '</C>', which was not asked for"),
    ],
)
def test_other_ends_are_failures(reply, told):
    """Nothing is made of them."""
    with pytest.raises(EngineError, match=told):
        read_end(reply, ASK)


def tokens(*logprobs):
    return tuple(Token("x", logprob) for logprob in logprobs)


def test_counts():
    """By the listed tokens; else a share of the whole, marked as such, whose log-probability is not known."""
    assert count(Answer([Reply("x", tokens=tokens(-1.0, -0.5))]), 0, 8) == (2, -1.5, False)
    assert count(Answer([Reply("", tokens=())], completion_tokens=5), 0, 8) == (0, 0, False)
    three = Answer([Reply("x"), Reply("y"), Reply("z", tokens=())], completion_tokens=8)
    shares = [count(three, number, 8) for number in range(3)]
    assert [tokens for tokens, _, _ in shares] == [2, 3, 3] and all(shared for _, _, shared in shares)
    assert all(math.isnan(logprob) for _, logprob, _ in shares)
    alone = count(Answer([Reply("x")], completion_tokens=4), 0, 8)
    assert alone[0] == 4 and alone[2] is False and math.isnan(alone[1])


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer([Reply("x", tokens=tokens(math.nan))]), "log-probability of nan"),
        (Answer([Reply("x", tokens=tokens(-math.inf))]), "log-probability of -inf"),
        (Answer([Reply("x", tokens=tokens(0.5))]), "log-probability of 0.5"),
        (Answer([Reply("x", tokens=tokens(*[-1.0] * 10))]), "10 tokens where 8 were allowed"),
        (Answer([Reply("x")], completion_tokens=10**9), "1000000000 tokens where 8"),
        (Answer([Reply("x")]), "does not tell how many"),
    ],
)
def test_impossible_numbers_are_failures(answer, told):
    """Never a silent 0."""
    with pytest.raises(EngineError, match=told):
        count(answer, 0, 8)


def test_an_end_token_more_or_less_is_possible():
    """Some count it; and rounding may bring a sure token above 0."""
    assert count(Answer([Reply("x", tokens=tokens(*[1e-5] * 9))]), 0, 8)[0] == 9


def listed(*pairs):
    return Token(pairs[0][0], pairs[0][1], pairs)


LOG = math.log
ODDS = {
    "both": ([listed(("1", LOG(0.7)), ("2", LOG(0.3)))], [0.7, 0.3]),
    "spellings add up": ([listed((" 1", LOG(0.5)), ("\u25811", LOG(0.2)), ("2\n", LOG(0.3)))], [0.7, 0.3]),
    "white space first": ([listed(("\u2581", -0.1), ("1", -3.0)), listed(("2", LOG(0.9)), ("1", LOG(0.1)))], [0.1, 0.9]),
    "one is bounded": ([listed(("1", LOG(0.9)), ("I", LOG(0.06)), ("A", LOG(0.04)))], [0.9, 0.04]),
    "longer words are others": ([listed(("1", LOG(0.2)), ("12", LOG(0.5)), ("2", LOG(0.3)))], [0.2, 0.3]),
}


@pytest.mark.parametrize(("said", "wanted"), ODDS.values(), ids=ODDS)
def test_odds(said, wanted):
    """Of each option as the first thing that is said."""
    found = option_logprobs(Reply("1", tokens=tuple(said)), ["1", "2"])
    assert [math.exp(value) for value in found] == pytest.approx(wanted)


@pytest.mark.parametrize("said", [None, (), (Token("1", -0.1),), (listed(("A", -0.1), ("B", -1.0)),), (listed((" ", -0.1)),)])
def test_no_odds(said):
    """No option among what is listed: no preference."""
    assert all(map(math.isnan, option_logprobs(Reply("A", tokens=said), ["1", "2"])))


def test_impossible_odds():
    """A number that is none is a failure, whichever token it is of."""
    with pytest.raises(EngineError, match="nan"):
        option_logprobs(Reply("1", tokens=(listed(("1", -0.1), ("A", math.nan)),)), ["1", "2"])


def test_what_servers_send():
    """vLLM's and SGLang's names for what ended a text; numbers that are none arrive as such; the key is in no text."""
    body = b"""{"model": "key", "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}, "choices": [
      {"message": {"content": "a key"}, "finish_reason": "stop", "stop_reason": "</A>", "logprobs": {"content": [
        {"token": "a", "logprob": NaN, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.5}]}]}},
      {"message": {"content": null}, "finish_reason": "stop", "matched_stop": 2, "logprobs": null}]}"""
    found = read_answer(body, lambda text: text.replace("key", "***"))
    assert (found.model, found.prompt_tokens, found.completion_tokens) == ("***", 7, 3)
    first, second = found.replies
    assert (first.text, first.stopped_at, second.text, second.stopped_at, second.tokens) == ("a ***", "</A>", "", 2, None)
    assert math.isnan(first.tokens[0].logprob) and first.tokens[0].top == (("b", -1.5),)
