"""Stages read out of generated text: every string has an outcome, however it is cut."""

import json
from collections import Counter
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_cot.formats import FORMATS, CotFormat, Event, Stage

FOUR_STAGE, DIRECT = FORMATS["four_stage"], FORMATS["direct"]
TWO = CotFormat("two", (Stage("A"), Stage("B", is_answer=True)))
TAGS = ["<A>", "</A>", "<B>", "</B>"]
PIECES = st.sampled_from(TAGS) | st.sampled_from(TAGS).flatmap(lambda t: st.integers(0, len(t)).map(lambda n: t[:n]))
TEXTS = st.lists(PIECES | st.text(max_size=4) | st.sampled_from(["<a>", "\n\n", "<", "[A]"]), max_size=14).map("".join)


def read(parsed):
    return {stage.name: stage.text for stage in parsed.stages}


def merged(events):
    """Events with neighbouring texts of one stage joined: what does not depend on the cuts."""
    runs = (list(run) for _, run in groupby(events, key=lambda event: event[:2]))
    return [Event(run[0].kind, run[0].stage, "".join(event.text for event in run)) for run in runs]


@pytest.mark.parametrize(
    ("text", "outcome", "stages", "answer", "outside", "fault"),
    [
        ("<A> x </A>\n\n<B> y </B>", "complete", {"A": "x", "B": "y"}, "y", "", ""),
        ("so <A>x</A> and <B>y</B>.", "complete", {"A": "x", "B": "y"}, "y", "so  and .", ""),
        ("<A></A><B></B>", "complete", {"A": "", "B": ""}, None, "", ""),
        ("", "none", {}, None, "", "no stage tag in the text"),
        ("The answer is 3.", "none", {}, None, "The answer is 3.", "no stage tag in the text"),
        ("<a>x</a><b>y</b>", "none", {}, None, "<a>x</a><b>y</b>", "no stage tag in the text"),
        ("<A>x</A>", "partial", {"A": "x"}, None, "", "<B> is missing"),
        ("<B>y</B>", "partial", {"B": "y"}, "y", "", "<B> where <A> was expected"),
        ("<A>x</A><B>y", "partial", {"A": "x", "B": "y"}, "y", "", "</B> is missing"),
        ("<A>x</A><B>y</", "partial", {"A": "x", "B": "y</"}, "y</", "", "</B> is missing"),
        ("<A>x<B>y</B></A>", "partial", {"A": "x<B>y</B>"}, None, "", "<B> where </A> was expected"),
        ("<A>see </B></A><B>y</B>", "partial", {"A": "see </B>", "B": "y"}, "y", "", "</B> where </A> was expected"),
        ("<A>x</A><A>z</A><B>y</B>", "partial", {"A": "x", "B": "y"}, "y", "<A>z</A>", "<A> where <B> was expected"),
        ("<B>y</B><A>x</A>", "partial", {"B": "y"}, "y", "<A>x</A>", "<B> where <A> was expected"),
        ("<A>x</A><B>y</B><B>z</B>", "partial", {"A": "x", "B": "y"}, "y", "<B>z</B>", "<B> after the last stage"),
        ("</A>", "partial", {}, None, "</A>", "</A> where <A> was expected"),
    ],
)
def test_every_kind_of_text_has_a_defined_outcome(text, outcome, stages, answer, outside, fault):
    """Missing, nested, lower-case, unfinished, quoted, repeated and out-of-order tags are told apart and named."""
    parsed = TWO.parse(text)
    assert (parsed.outcome, read(parsed), parsed.answer) == (outcome, stages, answer)
    assert (parsed.outside, parsed.fault) == (outside, fault)


def test_an_unfinished_stage_is_marked():
    """Only the stage that was never closed counts as not closed, and a stage that never began is not there."""
    parsed = FOUR_STAGE.parse("<SUMMARY> s </SUMMARY> <CAPTION> c")
    assert [(stage.name, stage.closed) for stage in parsed.stages] == [("SUMMARY", True), ("CAPTION", False)]
    assert parsed.get("CAPTION").text == "c"
    assert parsed.get("REASONING") is None


@given(st.text() | TEXTS)
@pytest.mark.parametrize("cot_format", [TWO, FOUR_STAGE, DIRECT, FOUR_STAGE.spelled("brackets")], ids=str)
def test_no_text_raises(cot_format, text):
    """Every string parses, and is complete exactly when no fault is named."""
    parsed = cot_format.parse(text)
    assert (parsed.outcome == "complete") == (parsed.fault == "")


@given(TEXTS, st.lists(st.integers(0, 60), max_size=12))
@pytest.mark.parametrize("cot_format", [TWO, TWO.spelled("brackets"), DIRECT], ids=["xml", "brackets", "direct"])
def test_cutting_a_text_changes_nothing(cot_format, text, cuts):
    """A text fed in any pieces gives the events' texts, and the result, of the whole text."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parser, events = cot_format.parser(), []
    for begin, end in pairwise(edges):
        events += parser.feed(text[begin:end])
    whole = cot_format.parser()
    assert merged(events) == merged(whole.feed(text))
    assert parser.finish() == whole.finish() == cot_format.parse(text)


@given(TEXTS)
def test_no_character_is_lost(text):
    """Text and tags of all events, and what is held back at the end, are the text that was fed."""
    parser, told = TWO.parser(), ""
    for character in text:
        for kind, stage, inner in parser.feed(character):
            told += {"start": f"<{stage}>", "end": f"</{stage}>", "text": inner}[kind]
    assert text.startswith(told)
    assert len(text) - len(told) < max(map(len, TAGS))


def test_text_is_told_as_soon_as_it_is_certain():
    """Only a possible beginning of a tag is held back, and it comes out as text when it was none."""
    parser = TWO.parser()
    assert parser.feed("<A>x") == [Event("start", "A"), Event("text", "A", "x")]
    assert parser.feed(" </") == [Event("text", "A", " ")]
    assert parser.feed("C") == [Event("text", "A", "</C")]
    assert parser.feed("</A>") == [Event("end", "A")]
    assert parser.stage is None


@pytest.mark.parametrize(
    ("text", "outcome", "answer"),
    [(" 3\n", "complete", "3"), ("<B>3</B>", "complete", "<B>3</B>"), (" \n", "none", None)],
)
def test_an_untagged_format_takes_the_whole_text(text, outcome, answer):
    """Without tags everything is the answer, and only an empty text is none."""
    parsed = DIRECT.parse(text)
    assert (parsed.outcome, parsed.answer, parsed.outside) == (outcome, answer, "")


def test_outputs_of_the_published_model(shared_data):
    """Of 500 real outputs of LLaVA-CoT 11B, 471 are complete and 29 hold no stage at all."""
    lines = shared_data("llavacot_outputs_500.jsonl").read_text(encoding="utf-8").splitlines()
    parsed = [FOUR_STAGE.parse(json.loads(line)["prediction"]) for line in lines]
    assert Counter(p.outcome for p in parsed) == {"complete": 471, "none": 29}
    assert all(p.answer for p in parsed if p.outcome == "complete")
