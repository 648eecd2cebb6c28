"""When an answer is right, for each kind of question; what cannot be read is no answer."""

import json
from pathlib import Path

import pytest

from lora_cot.data.questions import as_list
from lora_cot.evaluation import verdicts
from lora_cot.evaluation.benchmarks import find
from lora_cot.evaluation.questions import Wanted
from lora_cot.evaluation.summary import Judged, summarise
from lora_cot.evaluation.verdicts import Verdict
from lora_cot.formats import FORMATS
from lora_cot.formats.answers import letter
from lora_cot.types import Exchange, Sample
from tests.published import hallusionbench_file

OUTPUTS = Path(__file__).parents[3] / "shared" / "data" / "llavacot_outputs_500.jsonl"


def asked(gold, kind="integer", options=(), precision=None):
    """A question of MathVista."""
    index = options.index(gold) if options else None
    meta = {"gold": index, "options": options, "type": kind, "precision": precision}
    return Sample("1", (Exchange("?", answer=gold if index is None else letter(index)),), meta=meta)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("14", 14),
        ("14.", 14),
        ("$1,000.50", 1000.5),
        ("-3 degrees", -3),
        ("5cm", 5),
        ("There are 5. So it is 5.0", 5),
        ("1 + 4 makes 5, so the answer is: 5", 5),
        ("three", 3),
        (".5", 0.5),
        ("3 or 4", None),
        ("1/2", None),
        ("1.5e3", 1500),
        ("3E-2 m", 0.03),
        ("The answer is 5 (from 2+3)", 5),
        ("The answer is (5)", 5),
        ("5 (or 6)", None),
        ("1st", None),
        ("the 22nd", None),
        ("12,5", None),
        ("H2O", None),
        ("none", None),
        ("", None),
    ],
)
def test_a_number_is_read_or_it_is_not(text, value):
    """One number with whatever stands beside it; of several none is taken."""
    assert verdicts.read_number(text) == value


@pytest.mark.parametrize(
    ("sample", "text", "verdict"),
    [
        (asked("14"), "The answer is 14.", Verdict("14", 1)),
        (asked("3"), "3.7", Verdict("3.7", 0)),
        (asked("1.2", "float", precision=1), "1.21 m", Verdict("1.21", 1)),
        (asked("1.2", "float", precision=1), "1.26", Verdict("1.26", 0)),
        (asked("1.20", "float", precision=2), "1.2", Verdict("1.2", 1)),
        (asked("[0, 2]", "list"), "They are [0.0, 2].", Verdict("[0.0, 2.0]", 1)),
        (asked("[0, 2]", "list"), "[2, 0]", Verdict("[2.0, 0.0]", 0)),
        (asked("[0, 2]", "list"), "0 and 2", Verdict(None, 0)),
        (asked("[0, 2]", "list"), f"[{'1' * 400}]", Verdict(None, 0)),
        (asked("97", "text", ("97", "102")), "97", Verdict("A", 1)),
        (asked("97", "text", ("97", "102")), "B", Verdict("B", 0)),
        (asked("97", "text", ("97", "102")), "96", Verdict(None, 0)),
        (asked("14"), None, Verdict(None, 0)),
    ],
)
def test_mathvista_compares_by_the_kind_of_answer(sample, text, verdict):
    """Numbers at the digits that count, lists in order, options by letter or words: never by the nearest one."""
    assert verdicts.of_mathvista(text, sample) == verdict


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("No, it is yellow.", "no"),
        ("no: yes would be wrong", "no"),
        ("It is taller, yes.", "yes"),
        ("yes or no", "yes"),
        ("I say yes and no", None),
        ("It cannot be told", None),
        ("I cannot tell, there is no image.", None),
        ("No figure is given.", None),
        ("No, there is no image of it.", "no"),
        ("There is no cat.", "no"),
        ("nothing", None),
        (None, None),
    ],
)
def test_yes_or_no(text, answer):
    """The word that it begins with, or the only one of the two that it says."""
    sample = Sample("1", (Exchange("?", answer="yes"),))
    assert verdicts.of_yes_or_no(text, sample) == Verdict(answer, float(answer == "yes"))


@pytest.mark.parametrize(
    ("text", "right"),
    [("x=-1, x=-5", True), ("-5 and -1", False), ("x=-1", False), ("Both.", True), ("both of them", False), (" ", False)],
)
def test_open_answers_without_a_judge(text, right):
    """Right is one of the references as it stands, or a text with all parts of one."""
    sample = Sample("1", (Exchange("?", answer="x=-1<AND>x=-5<OR>both"),))
    assert verdicts.of_reference(text, sample).credit == right


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("They are -1 and -5", "-1 <AND> -5", True),
        ("3 dogs and 2 cats", "3 <AND> 2", True),
        ("A. a bear and a  Fox", "a bear <AND> a fox", True),
        ("3.5 and 2", "3 <AND> 2", False),
        ("1.3 and 2", "3 <AND> 2", False),
        ("-3 and 2", "3 <AND> 2", False),
        ("bears and a fox", "bear <AND> a fox", False),
    ],
)
def test_all_parts_of_an_answer_stand_in_it(text, gold, right):
    """As they are written, of numbers too; a piece of a word or of a number is none."""
    assert verdicts.of_reference(text, Sample("1", (Exchange("?", answer=gold),))).credit == right


def test_sets_of_questions_count_as_one():
    """A set is right when all of it is: fAcc by figure, qAcc by question, circular by rotation; parts of a point are not."""
    made = {"circular": ("mmbench", "question"), "fAcc": ("hallusionbench", "figure"), "qAcc": ("hallusionbench", "pair")}
    for name, (benchmark, key) in made.items():
        credits = {"a": (1, 1), "b": (1, 0), "c": (0, 1), "d": (1, 0.5), "e": (0, 0)}
        meta = {"category": "x", "subcategory": "y", "ability": "z", "figure": "f", "pair": "p"}
        judged = [
            Judged(Sample(str(number), (Exchange("?"),), meta=meta | {key: one}), Verdict("A", credit), None)
            for one, pair in credits.items()
            for number, credit in enumerate(pair)
        ]
        share = summarise(find(benchmark), judged).groups[name]
        assert (share.correct, share.total) == (1, 5)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("Yes, it is.", "yes", True),
        ("No", "no", False),
        ("That cannot be told without a map.", "uncertain", True),
        ("It may be yes or no", "uncertain", True),
        ("It is not possible to say; there is no chart.", "uncertain", True),
        (" ", None, False),
        (None, None, False),
    ],
)
def test_without_a_figure_uncertain_is_right(text, answer, right):
    """Of a question with one it is no answer; what says nothing is none of either."""
    sample = Sample("1", (Exchange("?", answer="yes"),), meta={"figure": None})
    assert verdicts.of_hallusionbench(text, sample) == Verdict(answer, float(right))
    seen = Sample("1", (Exchange("?", answer="yes"),), meta={"figure": "VS_map_1_1"})
    assert verdicts.of_hallusionbench(text, seen) == verdicts.of_yes_or_no(text, seen)


def test_hallusionbench_is_counted_as_published(tmp_path):
    """All questions for aAcc, figures for fAcc and not their absence, questions with and without one for qAcc: by hand."""
    hallusionbench_file(tmp_path)
    found = find("hallusionbench").load(Wanted("all", data=str(tmp_path))).samples
    said = {
        "VD_chart_0_0_0": "yes",
        "VD_chart_0_1_0": "yes",
        "VS_map_1_0_0": "It is not known.",
        "VS_map_1_0_1": "yes",
        "VS_map_1_1_0": "no",
        "VS_map_1_1_1": "yes",
    }
    benchmark = find("hallusionbench")
    judged = [Judged(sample, benchmark.judge(said[sample.id], sample), None) for sample in found]
    summary = summarise(benchmark, judged)
    assert (summary.accuracy.correct, summary.accuracy.total, summary.unanswered) == (4, 6, 0)
    groups = {name: (share.correct, share.total) for name, share in summary.groups.items()}
    assert groups["fAcc"] == (2, 3) and groups["qAcc"] == (1, 3)


def test_no_answers_have_no_figures():
    """A file of predictions may have none for the questions of a split."""
    assert summarise(find("multi30k"), []).figures == {}


def test_real_answers_are_read():
    """Of 500 answers of the published model, nearly every one that has a conclusion names an option or a number."""
    if not OUTPUTS.is_file():
        pytest.skip("no published outputs here")
    unread = concluded = 0
    for row in map(json.loads, OUTPUTS.read_text().splitlines()):
        options = tuple(as_list(row["choices"]) or ()) if row["question_type"] == "multi_choice" else ()
        sample = asked(row["answer"], row["answer_type"], options)
        answer = FORMATS["four_stage"].parse(row["prediction"]).answer
        concluded += answer is not None
        unread += answer is not None and verdicts.of_mathvista(answer, sample).answer is None
    assert (concluded, unread) == (471, 8)
