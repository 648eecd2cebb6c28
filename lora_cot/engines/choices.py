"""From what a server answers to candidates, and to the odds of an option: whatever cannot be true is no candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lora_cot.engines.base import Ask, Ended
from lora_cot.engines.completions import Answer, Reply
from lora_cot.errors import EngineError

SENTENCE_ENDS = tuple(mark + gap for mark in ".!?" for gap in " \n")
"""Stop strings of a sentence. The gap is no part of it: the next token holds it."""
_ROUNDING = 1e-3
"""A log-probability may be that much above 0."""
_SPACES = " \t\r\n\u2581\u0120"
"""White space, also as vocabularies spell it."""


def stop_strings(ask: Ask) -> list[str]:
    """All that ends a candidate of the ask."""
    return [*ask.stop, *(SENTENCE_ENDS if ask.sentences else ())]


def read_end(reply: Reply, ask: Ask) -> tuple[str, Ended]:
    """A candidate's text, its stop string included, and how it ended.

    Raises:
        EngineError: it ended in no way that was asked for.
    """
    stops = stop_strings(ask)
    places = [(reply.text.find(stop) + len(stop), stop) for stop in stops if stop in reply.text]
    if places:  # also where the server wrote on behind it
        end, stop = min(places)
        return _ended(reply.text[:end], stop, ask)
    if reply.finish_reason == "length":
        return reply.text, "length"
    if reply.finish_reason != "stop":
        why = reply.refusal or (f"it ended with '{reply.finish_reason}'" if reply.finish_reason else "it has no end")
        raise EngineError(f"the server gave no whole text: {' '.join(why.split())[:200]}")
    if not isinstance(reply.stopped_at, str):
        return reply.text, "end"
    if reply.stopped_at not in stops:
        raise EngineError(f"the server stopped at '{reply.stopped_at[:40]}', which was not asked for")
    return _ended(reply.text + reply.stopped_at, reply.stopped_at, ask)


def _ended(text: str, stop: str, ask: Ask) -> tuple[str, Ended]:
    return (text, "stop") if stop in ask.stop else (text.rstrip(), "sentence")


def count(answer: Answer, number: int, most: int) -> tuple[int, float, bool]:
    """Tokens of one reply, the sum of their log-probabilities, and whether the tokens are a share of what all took.

    Args:
        answer: the reply's.
        number: the reply's place in it.
        most: tokens that a reply may have.

    Raises:
        EngineError: the server tells no numbers, or impossible ones.
    """
    reply, replies = answer.replies[number], len(answer.replies)
    if reply.tokens or (reply.tokens is not None and not reply.text):
        tokens, logprob, shared = len(reply.tokens), sum(_checked(token.logprob) for token in reply.tokens), False
    elif answer.completion_tokens is None:
        raise EngineError("the server does not tell how many tokens it generated")
    else:  # shares that add up to the whole
        total = answer.completion_tokens
        tokens = total * (number + 1) // replies - total * number // replies
        logprob, shared = math.nan, replies > 1
    if tokens > most + 1:  # some count the end token and some do not
        raise EngineError(f"the server tells of {tokens} tokens where {most} were allowed")
    return tokens, logprob, shared


def _checked(logprob: float) -> float:
    if not math.isfinite(logprob) or logprob > _ROUNDING:
        raise EngineError(f"the server tells a log-probability of {logprob}")
    return logprob


def option_logprobs(reply: Reply, options: Sequence[str]) -> list[float]:
    """The log-probability of each option as the first thing that the reply says, in nats.

    White space that is generated before it counts as given, and tokens that differ in white space add up. An option that
    is not among the listed tokens gets the lowest value that is listed: it is at most that likely. nan for all where no
    option is listed.

    Args:
        reply: with the likeliest tokens of its places.
        options: each a single token, without white space.

    Raises:
        EngineError: the server tells impossible numbers.
    """
    first = next((token for token in reply.tokens or () if token.text.strip(_SPACES)), None)
    listed = [(text.strip(_SPACES), _checked(logprob)) for text, logprob in first.top] if first else []
    sums = [math.fsum(math.exp(logprob) for text, logprob in listed if text == option) for option in options]
    if not any(sums):
        return [math.nan] * len(options)
    bound = min(logprob for _, logprob in listed)
    return [math.log(total) if total else bound for total in sums]
