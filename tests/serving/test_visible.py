"""What a client sees of a text is the same whole and in pieces; nothing written is silently lost."""

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_cot.formats import FORMATS
from lora_cot.search.trace import Completion, TracedCandidate, TracedStage
from lora_cot.serving.answers import usage
from lora_cot.serving.visible import Visible, whole

FOUR, TWO, DIRECT = FORMATS["four_stage"], FORMATS["two_stage"], FORMATS["direct"]
UNTAGGED = FORMATS["four_stage_untagged"]
COMPLETE = (
    "<SUMMARY> plan </SUMMARY>\n\n<CAPTION> a <CONCLUSION> sign </CAPTION>\n\n<REASONING> so  on </REASONING>\n\n"
    "<CONCLUSION> B. It is </CONCLUSION>"
)
PIECES = ["<SUMMARY>", "</SUMMARY>", "<CAPTION>", "</CAPTION>", "<REASONING>", "</REASONING>", "<CONCLUSION>", "</CONCLUSION>"]
TEXTS = st.lists(st.sampled_from([*PIECES, " ", "\n", "a", "b c", "<", "</", "<summary>"]), max_size=14).map("".join)


@pytest.mark.parametrize(
    ("cot_format", "text", "reasoning", "content"),
    [
        (FOUR, COMPLETE, "plan\n\na <CONCLUSION> sign\n\nso  on", "B. It is"),
        (FOUR, "<SUMMARY> plan </SUMMARY> <CAPTION> a ca", "plan\n\na ca", "a ca"),
        (FOUR, "<SUMMARY> plan </SUMMARY> and then", "plan", "and then"),
        (FOUR, "<SUMMARY> plan </SUMMARY>", "plan", ""),
        (FOUR, "no tags at all", "", "no tags at all"),
        (FOUR, "no tags <SUMM", "", "no tags <SUMM"),
        (FOUR, "<CONCLUSION> cut he", "", "cut he"),
        (FOUR, "<summary> x </summary>", "", "<summary> x </summary>"),
        (FOUR, "", "", ""),
        (DIRECT, " B. \n", "", "B."),
        (UNTAGGED, " plan\na sign\n\nso on \n \n B. It is \n", "plan\na sign\n\nso on", "B. It is"),
        (UNTAGGED, "B\n", "", "B"),
        (UNTAGGED, " \n", "", ""),
        (TWO, "<RATIONALE> so </RATIONALE>\n\n<ANSWER> B </ANSWER>", "so", "B"),
    ],
)
def test_a_text_is_split_into_reasoning_and_content(cot_format, text, reasoning, content):
    """The conclusion is the content; else what follows the last closed stage; of a text without tags, its last line."""
    assert whole(cot_format, text) == (reasoning, content)


def collect(visible, pieces, text):
    deltas = [delta for piece in pieces for delta in visible.feed(piece)] + visible.finish(text)
    kinds = {kind: "".join(delta.text for delta in deltas if delta.kind == kind) for kind in ("reasoning", "content")}
    assert (visible.reasoning, visible.content) == (kinds["reasoning"], kinds["content"])
    return kinds["reasoning"], kinds["content"]


def cut(text, places):
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(TEXTS, st.lists(st.integers(0, 200), max_size=12), st.sampled_from([FOUR, DIRECT, UNTAGGED]))
def test_a_stream_shows_what_the_whole_text_does(text, places, cot_format):
    """However it is cut, tags forged, doubled or unfinished."""
    assert collect(Visible(cot_format), cut(text, places), text) == whole(cot_format, text)


@given(TEXTS, st.lists(st.integers(0, 200), max_size=12), st.lists(st.sampled_from(["a", "b c", "c", "ab"]), max_size=2))
def test_stops_end_the_content_alone(text, places, stops):
    """At the first of them, in a stream too; the reasoning is untouched."""
    reasoning, content = whole(FOUR, text)
    ends = [place for stop in stops if (place := content.find(stop)) >= 0]
    expected = content[: min(ends)] if ends else content
    visible = Visible(FOUR, stops)
    assert collect(visible, cut(text, places), text) == (reasoning, expected)
    assert visible.is_cut == bool(ends)


@given(TEXTS, st.lists(st.integers(0, 200), max_size=12))
def test_without_reasoning_the_text_is_shown_as_it_is(text, places):
    """Tags included."""
    assert collect(Visible(FOUR, with_reasoning=False), cut(text, places), text) == ("", text)


def test_lines_are_reasoning_once_another_follows():
    """A stream of a text without tags tells each line as soon as it cannot be the answer, and the answer at its end."""
    visible = Visible(UNTAGGED)
    told = [visible.feed(piece) for piece in ("so\n", "it is", " \n\nB")]
    assert [[(delta.kind, delta.text, delta.stage) for delta in deltas] for deltas in told] == [
        [],
        [("reasoning", "so", "TEXT")],
        [("reasoning", "\nit is", "TEXT")],
    ]
    assert [(delta.kind, delta.text) for delta in visible.finish("so\nit is \n\nB")] == [("content", "B")]


@pytest.mark.parametrize("stage", [None, "TEXT"])
def test_tokens_of_lines_before_the_answer_are_those_of_reasoning(stage):
    """In proportion to the text, whether it was drawn as a whole or as a stage."""
    text, spent = "so it is\nB", ("generated_tokens", "judge_tokens", "judge_prompt_tokens", "looks", "shown_tokens")
    ticket = SimpleNamespace(prompts={}, spent=SimpleNamespace(generate_calls=1, judge_calls=0, **dict.fromkeys(spent, 0)))
    config, model = SimpleNamespace(strategy="greedy"), SimpleNamespace(cot_format=UNTAGGED)
    step = TracedStage(stage, (TracedCandidate(text, 9, None, -0.1, closed=True, chosen=True),))
    completion = Completion("", text, UNTAGGED.parse(text), "complete", [step], 9)
    told = usage(SimpleNamespace(ticket=ticket, config=config, model=model), [completion])
    assert told["completion_tokens_details"] == {"reasoning_tokens": 8}


def test_passes_of_a_split_format_are_stages():
    """Each pass is a text of its own; together they are what the tagged text holds."""
    visible = Visible(TWO)
    deltas = [
        delta
        for one, pieces in zip(TWO.passes, ([" so", " it", " is. "], [" B", "\n"]), strict=True)
        for piece in pieces
        for delta in visible.feed(piece, one)
    ]
    assert visible.finish("<RATIONALE> so it is. </RATIONALE>\n\n<ANSWER> B </ANSWER>") == []
    assert [(delta.kind, delta.stage) for delta in deltas] == [("reasoning", "RATIONALE")] * 3 + [("content", "ANSWER")]
    assert (visible.reasoning, visible.content) == ("so it is.", "B")
