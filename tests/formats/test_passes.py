"""Split formats: what each pass is asked, what it is taught, and how the passes make one text."""

import pytest

from lora_cot.errors import DataError, FormatError
from lora_cot.formats import FORMATS, CotFormat, Stage
from lora_cot.recipe.load import load_recipe
from lora_cot.recipe.schema import FormatSection
from lora_cot.types import Exchange

FOUR_STAGE, TWO_STAGE = FORMATS["four_stage"], FORMATS["two_stage"]
RATIONALE, ANSWER = TWO_STAGE.passes
GOLD = {"SUMMARY": "s", "CAPTION": "c", "REASONING": "r", "CONCLUSION": "7"}
THREE = CotFormat(
    "three",
    (
        Stage("LOOK", cue="I see:", tag="SEEN"),
        Stage("think_2", cue="So:", made_of=("REASONING",)),
        Stage("SAY", cue="Hence:", is_answer=True),
    ),
    split=True,
)


def asked(cot_format, choices=(), **keys):
    """The user's turn for one exchange."""
    return cot_format.question(Exchange(" How many?\n", **keys), choices)


def test_each_stage_is_a_pass():
    """A pass has one stage, without marks, and knows those before it; any other format is its own only pass."""
    assert [one.name for one in TWO_STAGE.passes] == ["rationale", "answer"]
    assert [one.name for one in THREE.passes] == ["look", "think_2", "say"]
    for split in (TWO_STAGE, THREE):
        for number, one in enumerate(split.passes):
            assert [stage.name for stage in one.stages] == [split.stages[number].name]
            assert [stage.name for stage in one.given] == [stage.name for stage in split.stages[:number]]
            assert (one.is_tagged, one.passes, one.answer_stage.name) == (False, (one,), split.stages[number].name)
            assert one.stages[0].max_new_tokens == split.stages[number].max_new_tokens
    assert FOUR_STAGE.passes == (FOUR_STAGE,) and FORMATS["direct"].passes == (FORMATS["direct"],)
    assert [one.answer_stage.is_answer for one in TWO_STAGE.passes] == [False, True]


def test_the_first_pass_asks_for_the_rationale():
    """Question, options and cue, as the published prompts have them; no stage is given away."""
    assert asked(RATIONALE) == "Question: How many?\nSolution:"
    options = "Options: (A) one (B) 2 (C) none of them"
    assert asked(RATIONALE, ["one", "2", "none of them"]) == f"Question: How many?\n{options}\nSolution:"
    assert asked(RATIONALE, stages=GOLD | {"RATIONALE": "x", "ANSWER": "y"}, answer="z") == asked(RATIONALE)


def test_the_second_pass_is_given_the_rationale():
    """It stands between the options and the cue, after the cue it was asked for with."""
    given = {"RATIONALE": " two and\ntwo ", "ANSWER": "no"}
    assert asked(ANSWER, stages=given) == "Question: How many?\nSolution: two and\ntwo\nAnswer:"
    with_options = "Question: How many?\nOptions: (A) 3 (B) 4\nSolution: two and\ntwo\nAnswer:"
    assert asked(ANSWER, ["3", "4"], stages=given, answer="4") == with_options


def test_a_later_pass_is_given_all_before_it():
    """In order, each after its cue."""
    stages = {"think_2": "t", "LOOK": "l"}
    assert asked(THREE.passes[2], stages=stages) == "Question: How many?\nI see: l\nSo: t\nHence:"
    assert asked(THREE.passes[1], stages=stages) == "Question: How many?\nI see: l\nSo:"


@pytest.mark.parametrize("whole", [FOUR_STAGE, FORMATS["direct"], TWO_STAGE, THREE], ids=lambda whole: whole.name)
def test_without_passes_a_question_is_asked_as_it_is(whole):
    """Only a pass adds to the user's words; options are listed all the same."""
    assert asked(whole, stages=GOLD) == "How many?"
    assert asked(whole, ["a", "b"]) == "How many?\nOptions: (A) a (B) b"


def test_gold_has_its_own_names():
    """Rationale and answer are taken as they stand, whatever else the data have."""
    own = {"RATIONALE": " because ", "ANSWER": "8"}
    exchange = Exchange("?", stages=GOLD | own, answer="9")
    assert TWO_STAGE.gold(exchange) == {"RATIONALE": "because", "ANSWER": "8"}
    assert RATIONALE.gold(exchange) == {"RATIONALE": "because"}
    assert ANSWER.gold(exchange) == {"ANSWER": "8"}


def test_gold_is_made_of_four_stages():
    """What comes before the conclusion is the rationale; the conclusion, or a short answer, is the answer."""
    assert TWO_STAGE.gold(Exchange("?", stages=GOLD)) == {"RATIONALE": "s\nc\nr", "ANSWER": "7"}
    assert TWO_STAGE.gold(Exchange("?", stages=GOLD, answer="seven"))["ANSWER"] == "seven"
    assert RATIONALE.gold(Exchange("?", stages={k: GOLD[k] for k in ("REASONING", "SUMMARY", "CAPTION")})) == {
        "RATIONALE": "s\nc\nr"
    }
    assert asked(ANSWER, stages=GOLD) == "Question: How many?\nSolution: s\nc\nr\nAnswer:"


@pytest.mark.parametrize("lost", ["SUMMARY", "CAPTION", "REASONING"])
def test_a_rationale_is_made_of_all_or_none(lost):
    """A rationale that would lack a stage is missing, for the pass that learns it and for the one that reads it."""
    exchange = Exchange("?", stages=GOLD | {lost: " "})
    for use in (TWO_STAGE.gold, RATIONALE.gold, ANSWER.question):
        with pytest.raises(DataError, match=r"^no text for RATIONALE · expected "):
            use(exchange)


def test_missing_text_is_named():
    """A pass misses its own stage; the whole format all of them."""
    with pytest.raises(DataError, match=r"no text for RATIONALE, ANSWER · expected <RATIONALE>…</RATIONALE> <ANSWER>…"):
        TWO_STAGE.gold(Exchange("?"))
    with pytest.raises(DataError, match=r"^no text for ANSWER · expected …$"):
        ANSWER.gold(Exchange("?", stages={"RATIONALE": "r"}))
    with pytest.raises(DataError, match=r"^no text for LOOK, think_2 · "):
        THREE.passes[2].question(Exchange("?"))


@pytest.mark.parametrize("one", TWO_STAGE.passes, ids=lambda one: one.name)
def test_a_pass_writes_and_reads_plain_text(one):
    """Its stage is the whole text; tags in it are text."""
    name = one.stages[0].name
    text = "see <ANSWER> here </ANSWER>"
    assert one.gold(Exchange("?", stages={name: text})) == {name: text}
    assert [piece for _, piece in one.write({name: f" {text}\n"})] == [text]
    assert one.read(text) == {name: text}
    assert one.parse(text).answer == text


def test_the_whole_text_has_its_tags():
    """Files of predictions and replies are in the format as if it had been written in one pass."""
    written = "".join(text for _, text in TWO_STAGE.write({"ANSWER": "4", "RATIONALE": "r"}))
    assert written == "<RATIONALE> r </RATIONALE>\n\n<ANSWER> 4 </ANSWER>"
    assert TWO_STAGE.read(written) == {"RATIONALE": "r", "ANSWER": "4"}


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ({}, ""),
        ({"CONCLUSION": "7"}, "<CONCLUSION> 7 </CONCLUSION>"),
        ({"REASONING": "r", "SUMMARY": "s"}, "<SUMMARY> s </SUMMARY>\n\n<REASONING> r </REASONING>"),
        ({"CAPTION": "c", "RATIONALE": "x"}, "<CAPTION> c </CAPTION>"),
    ],
)
def test_some_stages_can_be_written(stages, text):
    """Those that are given, in the format's order and with nothing before the first."""
    pieces = FOUR_STAGE.write(stages)
    assert "".join(piece for _, piece in pieces) == text
    assert [stage.name for stage, _ in pieces] == [stage.name for stage in FOUR_STAGE.stages if stage.name in stages]


@pytest.mark.parametrize("cot_format", [TWO_STAGE, THREE], ids=lambda cot_format: cot_format.name)
def test_another_spelling_changes_the_tags_alone(cot_format):
    """Passes, cues and prompts stay; what is written is read back."""
    spelled = cot_format.spelled("brackets")
    label = spelled.stages[0].label
    assert (spelled.opening(spelled.stages[0]), spelled.closing(spelled.stages[0])) == (f"[{label}]", f"[/{label}]")
    assert (spelled.stages, spelled.split, spelled.name) == (cot_format.stages, True, cot_format.name)
    stages = {stage.name: f"<{stage.name}> {stage.name}" for stage in spelled.stages}
    exchange = Exchange("?", stages=stages)
    assert [one.question(exchange) for one in spelled.passes] == [one.question(exchange) for one in cot_format.passes]
    assert [one.tag_style for one in spelled.passes] == ["brackets"] * len(spelled.stages)
    written = "".join(text for _, text in spelled.write(stages))
    assert "</" not in written and spelled.read(written) == stages
    assert spelled.spelled("xml") == cot_format


def test_a_split_format_is_declared_in_a_recipe(tmp_path):
    """Own stages with cues, and what they are made of, are the passes that a recipe trains."""
    path = tmp_path / "recipe.yaml"
    path.write_text("""
name: own
model: {base: mini/llava}
data: {train: [{source: shapes}]}
format:
  name: look_then_say
  split: true
  stages:
    - {name: LOOK, cue: "I see:", made_of: [CAPTION], max_new_tokens: 9}
    - {name: SAY, cue: "So:", made_of: [CONCLUSION], is_answer: true}
training: {stage_weights: {LOOK: 2}}
""")
    first, second = load_recipe(path).format.build().passes
    assert (first.name, first.stages[0].max_new_tokens, second.name) == ("look", 9, "say")
    assert first.gold(Exchange("?", stages=GOLD)) == {"LOOK": "c"}
    assert asked(second, stages=GOLD) == "Question: How many?\nI see: c\nSo:"
    assert second.gold(Exchange("?", stages=GOLD)) == {"SAY": "7"}


@pytest.mark.parametrize(
    ("stages", "match"),
    [
        ((Stage("A", cue="a:"), Stage("B", is_answer=True)), "every stage of a split format needs a cue"),
        ((Stage("A"), Stage("B", cue="b:", is_answer=True)), "every stage of a split format needs a cue"),
        ((Stage("A", cue="a:"), Stage("B", cue="b:")), "exactly one stage must be the answer"),
        ((Stage("A", cue="a:", tagged=False), Stage("B", cue="b:", is_answer=True)), "an untagged stage must be the only"),
    ],
)
def test_a_split_format_that_contradicts_itself_is_refused(stages, match):
    """Each pass needs something to be asked with, and one of them answers."""
    with pytest.raises(FormatError, match=match):
        CotFormat("bad", stages, split=True)


def test_a_built_in_format_is_split_or_not():
    """`split` belongs to declared stages; a built-in format is what it is."""
    assert [FormatSection(name=name).build().split for name in ("two_stage", "four_stage", "direct")] == [True, False, False]


def test_two_passes_need_two_names():
    """Passes are named in lower case, folders and adapters too: stages that differ in case alone are refused."""
    with pytest.raises(FormatError):
        CotFormat("bad", (Stage("look", cue="a:"), Stage("LOOK", cue="b:", is_answer=True)), split=True)
