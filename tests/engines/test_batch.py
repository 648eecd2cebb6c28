"""Rows that join, leave and end: none of it changes what another row draws."""

import math
import re
import time

import pytest

from lora_cot.engines import batch as batch_of_rows
from lora_cot.engines.base import Ask, Sampling
from lora_cot.engines.causal import CausalRows
from lora_cot.types import Exchange, Sample
from tests.engines.reference import SAMPLES, TEXT_ONLY


def ask(state, seeds="abc", tokens=12, **keys):
    """Draws at temperature 1."""
    return Ask(state, list(seeds), tokens, sampling=Sampling(1.0), **keys)


def texts(candidates):
    return [candidate.text for candidate in candidates]


def test_rows_join_and_leave_at_any_step(each_engine):
    """A question that joins late, beside others that leave early, is answered as if it were alone; so are the others."""
    engine = each_engine
    states = engine.start([SAMPLES[0], TEXT_ONLY, SAMPLES[1]])
    asks = [ask(states[0]), ask(states[1], "de", 5), ask(states[2], "fg", 9)]
    alone = [texts(engine.extend([one])[0]) for one in asks]
    with engine.running():
        batch = engine.batch()
        jobs = [batch.add(asks[0])]
        for step in range(30):
            if step in (3, 6):
                jobs.append(batch.add(asks[len(jobs)]))
            if not batch.is_empty:
                batch.step()
    assert all(job.done for job in jobs) and batch.is_empty
    assert [[job.candidates[number].text for number in range(len(job.rows))] for job in jobs] == alone


def test_a_long_question_joins_short_ones(each_engine):
    """The buffer is laid out anew, to either side, and gives back what the long one needed when it goes."""
    engine = each_engine
    long = Sample("long", (Exchange("word " * 60 + "?"),), SAMPLES[0].images)
    states = engine.start([long, SAMPLES[0]])
    alone = [texts(engine.extend([ask(state, tokens=10 + 20 * place)])[0]) for place, state in enumerate(states)]
    with engine.running():
        batch = engine.batch()
        short = batch.add(ask(states[1], tokens=30))
        for _ in range(4):
            batch.step()
        joined = batch.add(ask(states[0], tokens=10))
        while not short.done:
            batch.step()
    assert [[job.candidates[number].text for number in range(3)] for job in (joined, short)] == alone


def test_what_nobody_waits_for_leaves_within_a_step(engine):
    """Its rows are gone, its candidates are not made, and the others draw what they draw alone."""
    states = engine.start(SAMPLES[:2])
    expected = texts(engine.extend([ask(states[1])])[0])
    with engine.running():
        batch = engine.batch()
        gone, kept = batch.add(ask(states[0])), batch.add(ask(states[1]))
        for _ in range(3):
            batch.step()
        batch.drop(gone)
        unborn = batch.add(ask(states[0]))
        batch.drop(unborn)
        while not batch.is_empty:
            batch.step()
    assert not gone.candidates and not unborn.candidates
    assert [kept.candidates[number].text for number in range(3)] == expected


def test_asks_of_one_batch_have_their_own_bounds(engine):
    """Budgets, stops and temperatures are each ask's own; one of no token is answered at once."""
    state = engine.start(SAMPLES[:1])[0]
    found = engine.extend([ask(state, tokens=4), Ask(state, ["x"], 7), ask(state, tokens=0)])
    assert [[c.tokens for c in mine] for mine in found] == [[4] * 3, [7], [0] * 3]
    assert found[1][0].text == engine.extend([Ask(state, ["y"], 7)])[0][0].text, "greedy draws nothing"
    assert {c.ended for mine in found for c in mine} == {"length"}


def test_a_deadline_ends_candidates_as_they_are(engine):
    """They can be continued from there; one that has passed before the first token leaves the state as it was."""
    state = engine.start(SAMPLES[:1])[0]
    (late,) = engine.extend([ask(state, "a", deadline=time.monotonic() - 1)])[0]
    assert (late.ended, late.tokens, late.text, late.state) == ("deadline", 0, "", state)
    with engine.running():
        batch = engine.batch()
        job = batch.add(Ask(state, ["a"], 500, deadline=time.monotonic() + 0.2))
        while not job.done:
            batch.step()
    cut = job.candidates[0]
    assert cut.ended == "deadline" and 0 < cut.tokens < 500
    (rest,) = engine.extend([Ask(cut.state, ["a"], 4)])[0]
    (whole,) = engine.extend([Ask(state, ["a"], cut.tokens + 4)])[0]
    assert whole.logprob == pytest.approx(cut.logprob + rest.logprob, abs=1e-3)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("It is red. And", "It is red."),
        ('He said "no!" And', 'He said "no!'),
        ("Pi is 3.14 here. And", "Pi is 3.14 here."),
        ("It is 42. And so", "It is 42. A"),
        ("one\ntwo", "one\n"),
        ("1. The cat. And", "1. The cat."),
        ("red\n2. It is blue. So", "red\n"),
        ("nothing ends", "nothing ends"),
    ],
)
def test_a_candidate_can_end_with_a_sentence(engine, monkeypatch, script, text):
    """At a point, a question or exclamation mark, or a line break; not at the point of a number."""
    ids = [
        engine.texts.tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in re.split(r"(?<=\S)(?=\s)", script)
    ]
    script = [token for piece in ids for token in piece]
    calls = []
    monkeypatch.setattr(batch_of_rows, "draw", lambda *_: ([script[len(calls)]], calls.append(0) or [0.0]))
    state = engine.start(SAMPLES[:1])[0]
    (found,) = engine.extend([Ask(state, ["x"], len(script), sentences=True)])[0]
    assert found.text.startswith(text) and len(found.text) <= len(text) + 4
    assert found.ended == ("length" if text == "nothing ends" else "sentence")


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_stop_string_may_begin_before_the_cut(engine, monkeypatch, cut):
    """A budget cut a closing tag in two: what goes on from there closes it; one that was whole before is none of it."""
    script = engine.texts.tokenizer("ab</SUMMARY> cd</SUMMARY>", add_special_tokens=False)["input_ids"]
    calls = []
    monkeypatch.setattr(batch_of_rows, "draw", lambda *_: ([script[len(calls)]], calls.append(0) or [0.0]))
    state, text, ended = engine.start(SAMPLES[:1])[0], "", []
    for budget in (cut, 40, 40):
        if len(calls) == len(script):
            break
        (found,) = engine.extend([Ask(state, ["x"], min(budget, len(script) - len(calls)), ("</SUMMARY>",))])[0]
        state, text = found.state, text + found.text
        ended.append((found.ended, text))
    stops = [so_far for how, so_far in ended if how == "stop"]
    assert stops == ["ab</SUMMARY>", "ab</SUMMARY> cd</SUMMARY>"]


def test_numbers_that_are_none_end_a_candidate(engine, monkeypatch):
    """Logits that overflowed give no text, confident or not; the others of the batch go on."""
    states = engine.start(SAMPLES[:2])
    expected = texts(engine.extend([ask(states[1])])[0])
    step = CausalRows.step

    def broken(rows):
        logits = step(rows)
        if not broke:
            logits[0] = float("nan")
            broke.append(True)
        return logits

    broke = []

    monkeypatch.setattr(CausalRows, "step", broken)
    (bad,), found = engine.extend([Ask(states[0], ["x"], 9), ask(states[1])])
    assert (bad.ended, bad.text, bad.tokens) == ("failed", "", 0) and "not finite" in bad.problem
    assert math.isnan(bad.logprob)
    assert texts(found) == expected
