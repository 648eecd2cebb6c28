"""What a format writes it reads back, and what it cannot express it refuses."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_cot.errors import DataError, FormatError
from lora_cot.formats import FORMATS, CotFormat, Stage
from lora_cot.formats.answers import normalise, same
from lora_cot.formats.base import TAG_STYLES
from lora_cot.types import Exchange

FOUR_STAGE, DIRECT = FORMATS["four_stage"], FORMATS["direct"]
OWN = CotFormat("own", (Stage("look"), Stage("step-1"), Stage("réponse_2", is_answer=True)))
GOLD = {"SUMMARY": "s", "CAPTION": "c", "REASONING": "r", "CONCLUSION": "7"}
TAG_PIECES = st.sampled_from(["<", ">", "</", "[", "]", "[/", "<SUMMARY", "/CAPTION>", "<summary>", "[look", "\n\n"])
STAGE_TEXTS = st.lists(TAG_PIECES | st.text(max_size=6), min_size=1, max_size=6).map("".join).filter(str.strip)


@pytest.mark.crossed
@given(st.data())
@pytest.mark.parametrize("tag_style", TAG_STYLES)
@pytest.mark.parametrize("cot_format", [*FORMATS.values(), OWN], ids=lambda cot_format: cot_format.name)
def test_what_is_written_is_read_back(cot_format, tag_style, data):
    """Every format gives back the stages it wrote, with either spelling of tags, and takes its own text as gold."""
    spelled = cot_format.spelled(tag_style)
    stages = {stage.name: data.draw(STAGE_TEXTS) for stage in spelled.stages}
    tags = [tag for stage in spelled.stages for tag in (spelled.opening(stage), spelled.closing(stage)) if tag]
    assume(not any(tag in text for tag in tags for text in stages.values()))
    stripped = {name: text.strip() for name, text in stages.items()}

    written = "".join(text for _, text in spelled.write(stages))
    parsed = spelled.parse(written)

    assert (parsed.outcome, parsed.outside) == ("complete", "")
    assert {stage.name: stage.text for stage in parsed.stages} == stripped
    answer = stripped[spelled.answer_stage.name]
    assert parsed.answer == (answer.split("\n")[-1].strip() if spelled.answer_stage.ends_in_answer else answer)
    assert spelled.read(written) == spelled.gold(Exchange("?", stages=stages)) == stripped


def test_the_text_is_that_of_the_published_model():
    """Tags, inner spaces and empty lines are those of LLaVA-CoT's outputs; a direct answer has none."""
    written = "".join(text for _, text in FOUR_STAGE.write(GOLD))
    expected = ["<SUMMARY> s </SUMMARY>", "<CAPTION> c </CAPTION>", "<REASONING> r </REASONING>"]
    assert written == "\n\n".join([*expected, "<CONCLUSION> 7 </CONCLUSION>"])
    assert DIRECT.write({"ANSWER": " 7 "})[0][1] == "7"


def test_the_ablation_without_tags_writes_the_same_texts():
    """Four stages' texts, a line each, and no marks; its answer is the last line, cut off or not; nothing else stands in."""
    untagged = FORMATS["four_stage_untagged"]
    exchange = Exchange("?", stages=GOLD | {"REASONING": "r\n\nso"}, answer="seven")
    assert (written := untagged.gold(exchange)["TEXT"]) == "s\nc\nr\n\nso\n7"
    assert [untagged.parse(text).answer for text in (written, written + "\n ", "s\nit is", "", "\n")] == [
        "7",
        "7",
        "it is",
        None,
        None,
    ]
    assert untagged.short_answer(untagged.gold(exchange)) == "7" == FOUR_STAGE.short_answer(GOLD | {"CONCLUSION": "7"})
    for stages in (None, {"RATIONALE": "r", "ANSWER": "7"}):
        with pytest.raises(DataError, match="no text for TEXT"):
            untagged.gold(Exchange("?", stages=stages, answer="7"))
    budgets = [sum(stage.max_new_tokens for stage in one.stages) for one in (untagged, FOUR_STAGE)]
    assert budgets[0] == budgets[1]


def test_declared_stages_are_a_format():
    """Stages that a user declares are written in their order, with the tags of the style."""
    stages = {"réponse_2": "b", "look": "a", "step-1": "x"}
    written = "".join(text for _, text in OWN.spelled("brackets").write(stages))
    assert written == "[look] a [/look]\n\n[step-1] x [/step-1]\n\n[réponse_2] b [/réponse_2]"
    assert (OWN.answer_stage.name, OWN.is_tagged, DIRECT.is_tagged) == ("réponse_2", True, False)


def test_contradictions_are_reported_together():
    """One error names every contradiction of a format."""
    with pytest.raises(FormatError) as caught:
        CotFormat("bad", (Stage("A b", tagged=False), Stage("C"), Stage("C")), tag_style="tex")
    for what in (
        "stage 'C' is declared twice",
        "stage 'A b': a name is letters",
        "exactly one stage must be the answer",
        "an untagged stage must be the only one",
        "tag_style 'tex' is not one of xml, brackets",
    ):
        assert f"format bad · {what}" in str(caught.value)
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize(
    ("stages", "match"),
    [
        ((), "no stages"),
        ((Stage("A", is_answer=True), Stage("B", is_answer=True)), "exactly one stage must be the answer"),
        ((Stage("<A>", is_answer=True),), "a name is letters"),
        ((Stage("A\n", is_answer=True),), "a name is letters"),
        ((Stage("", is_answer=True),), "a name is letters"),
    ],
)
def test_a_contradiction_is_refused(stages, match):
    """A format that could not be read back cannot be made."""
    with pytest.raises(FormatError, match=match):
        CotFormat("bad", stages)


@pytest.mark.parametrize(
    ("exchange", "match"),
    [
        (Exchange("?"), "no text for SUMMARY, CAPTION, REASONING, CONCLUSION · expected <SUMMARY>…</SUMMARY> <"),
        (Exchange("?", stages=GOLD | {"CAPTION": " \n"}), "no text for CAPTION"),
        (Exchange("?", answer="7"), "no text for SUMMARY, CAPTION, REASONING ·"),
        (Exchange("?", stages=GOLD | {"CAPTION": "a <CONCLUSION>"}), "the text of CAPTION holds the tag <CONCLUSION>"),
        (Exchange("?", stages=GOLD | {"CAPTION": "a </CAPTION> b"}), "the text of CAPTION holds the tag </CAPTION>"),
    ],
)
def test_gold_that_cannot_be_expressed_is_refused(exchange, match):
    """Gold without text, with a tag inside its text, or in another format is an error that says which."""
    with pytest.raises(DataError, match=match):
        FOUR_STAGE.gold(exchange)


def test_the_short_answer_stands_in_for_the_answer_stage():
    """An answer fills the answer stage where no stage text is given, and never replaces it."""
    stages = {name: text for name, text in GOLD.items() if name != "CONCLUSION"}
    assert FOUR_STAGE.gold(Exchange("?", stages=stages, answer="8"))["CONCLUSION"] == "8"
    assert FOUR_STAGE.gold(Exchange("?", stages=GOLD, answer="8"))["CONCLUSION"] == "7"
    assert DIRECT.gold(Exchange("?", stages=GOLD, answer="8")) == {"ANSWER": "8"}


@pytest.mark.parametrize(
    ("predicted", "gold"),
    [
        ("(B)", "b"),
        ("B.", "b"),
        ("B", "(b)"),
        ("B: 5 MPa", "B"),
        ("(B) 5 MPa", "B"),
        ("The answer is (B).", "B"),
        ("3.0", "3"),
        ("1,000", "1000"),
        ("-2.50", "-2.5"),
        ("1234567.0", "1234567"),
        ("  Red\n circle. ", "red circle"),
        ("red circle .", "red circle"),
    ],
)
def test_answers_that_mean_the_same(predicted, gold):
    """Case, spaces, a final stop, brackets around a letter and the spelling of a number do not matter."""
    assert same(predicted, gold)
    assert same(gold, predicted)


@pytest.mark.parametrize(
    ("predicted", "gold"),
    [
        (None, ""),
        ("a", "b"),
        ("-3", "3"),
        ("3", "3 cm"),
        ("red", "red circle"),
        ("1.5", "15"),
        ("0.1", "0.12"),
        ("1234567", "1234568"),
        (".5", "5"),
        ("<5", ">5"),
        ("1,2", "12"),
    ],
)
def test_answers_that_differ(predicted, gold):
    """No answer is wrong, and two numbers or texts that differ in what matters are not the same."""
    assert not same(predicted, gold)


@given(st.text())
def test_any_text_is_the_same_as_itself(text):
    """Comparing answers raises on no text, and its spaces and case never matter."""
    assert same(text, text)
    assert normalise(f" {text}\n") == normalise(text)


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        ("7", "not a text in the format four_stage: no stage tag in the text"),
        ("<SUMMARY> s </SUMMARY>", "<CAPTION> is missing · expected <SUMMARY>"),
    ],
)
def test_a_reply_that_is_not_complete_is_refused(reply, match):
    """Gold text is read whole or not at all."""
    with pytest.raises(DataError, match=match):
        FORMATS["four_stage"].read(reply)


def test_a_tag_can_differ_from_its_stage():
    """Stages keep their names whatever the tags say."""
    own = CotFormat("own", (Stage("plan", tag="THINK"), Stage("answer", tag="ANSWER", is_answer=True)))
    written = "".join(text for _, text in own.write({"plan": "p", "answer": "a"}))
    assert written == "<THINK> p </THINK>\n\n<ANSWER> a </ANSWER>"
    assert own.read(written) == {"plan": "p", "answer": "a"}
    with pytest.raises(FormatError, match="two stages have the tag 'T'"):
        CotFormat("own", (Stage("a", tag="T"), Stage("b", tag="T", is_answer=True)))
