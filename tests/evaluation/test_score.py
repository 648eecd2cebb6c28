"""Answers that were made elsewhere: read in every form and spelling, judged as ours, gaps listed, nothing guessed."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_cot.errors import DataError, RunError
from lora_cot.evaluation.benchmarks import SCIENCEQA_CLASSES, find
from lora_cot.evaluation.predictions import Prediction, read_predictions, score, split_output
from lora_cot.evaluation.summary import Judged, summarise
from lora_cot.evaluation.verdicts import Verdict
from lora_cot.formats import FORMATS
from lora_cot.formats.answers import letter, read_option
from lora_cot.types import Exchange, Sample
from tests import published
from tests.published import problem

CHOICES = ("West Virginia", "E. coli", "a newt")
PROBLEMS = {
    "1": problem(split="test"),
    "2": problem(split="test", answer=1, subject="social science", hint="Look.", grade="grade7"),
    "3": problem(split="test", answer=2, subject="language science", image="image.png", hint="See.", grade="grade12"),
    "4": problem(split="test", answer=1, image="image.png", grade="grade6"),
    "5": problem(split="test", answer=0, solution="", lecture=""),
    "6": problem(split="train"),
}
NUMBERS = [number for number in PROBLEMS if PROBLEMS[number]["split"] == "test"]
TOTALS = {"NAT": 3, "SOC": 1, "LAN": 1, "TXT": 2, "IMG": 2, "NO": 2, "G1-6": 3, "G7-12": 2, "Avg": 5}
SPELLINGS = ["The answer is ({}).", "The answer is {}.", "{}", "{}. text", "({}) text", "({})", "{}.", "{}: text", " {}\n"]


@pytest.fixture
def files(tmp_path):
    """ScienceQA's folder without any image, and where predictions go."""
    published.scienceqa(tmp_path / "data", PROBLEMS, {"test": ["1", "2", "3", "4", "5"], "train": ["6"]}, images=False)
    return tmp_path


@pytest.fixture
def judged(files):
    """The report on predictions by id, ours as texts, the official ones as an object."""

    def report(predictions, official=False, **keys):
        path = files / "predictions.jsonl"
        rows = [{"id": number, "output": text} for number, text in predictions.items()]
        path.write_text(json.dumps(predictions) if official else "\n".join(map(json.dumps, rows)))
        return score("scienceqa", path, str(files / "data"), "test", **keys)

    return report


def gold(number):
    return PROBLEMS[number]["answer"]


def wrong(number):
    return (gold(number) + 1) % 3


def classes(report):
    found = report.to_json()
    return {name: (found[name]["correct"], found[name]["total"]) for name in SCIENCEQA_CLASSES}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_perfect_file_and_an_all_wrong_one(judged, spelling):
    """Every class is at all or nothing, in every spelling of an answer, and has its count."""
    perfect = judged({number: spelling.format(letter(gold(number))) for number in NUMBERS})
    assert classes(perfect) == {name: (total, total) for name, total in TOTALS.items()}
    hopeless = judged({number: spelling.format(letter(wrong(number))) for number in NUMBERS})
    assert classes(hopeless) == {name: (0, total) for name, total in TOTALS.items()}
    assert perfect.summary.unanswered == hopeless.summary.unanswered == 0
    assert perfect.to_json()["NAT"] == {"correct": 3, "total": 3}


def test_what_is_not_answered_is_counted_and_wrong(judged):
    """An empty text, words, an option that is not there, two options at once."""
    report = judged({"1": "", "2": "I do not know.", "3": "The answer is (D).", "4": "The answer is (A). The answer is (B)."})
    assert (report.summary.unanswered, report.scored, classes(report)["Avg"]) == (4, 4, (0, 4))


def test_an_index_counts_before_the_text(judged):
    """In the official form; -1 is no answer whatever the text says; where there is no index, the text is read."""
    results = {"1": 0, "2": wrong("2"), "3": -1, "4": 99}
    outputs = {number: f"The answer is ({letter(gold(number))})." for number in NUMBERS}
    report = judged({"results": results, "outputs": outputs}, official=True)
    assert (classes(report)["Avg"], report.summary.unanswered) == ((2, 5), 2)
    assert classes(judged({"results": results}, official=True))["Avg"] == (1, 4)
    assert classes(judged({"outputs": outputs}, official=True))["Avg"] == (5, 5)


@settings(max_examples=50)
@given(st.lists(st.integers(-1, 4), min_size=5, max_size=5))
def test_both_forms_agree(tmp_path_factory, indices):
    """The official one with indices, and ours with letters."""
    folder = tmp_path_factory.mktemp("both")
    splits = {"test": NUMBERS}
    data = str(published.scienceqa(folder / "data", PROBLEMS, splits, images=False))
    answers = dict(zip(NUMBERS, indices, strict=True))
    (folder / "official.json").write_text(json.dumps({"results": answers, "outputs": {}}))
    rows = [{"id": n, "output": "" if i < 0 else f"Solution: x The answer is ({letter(i)})."} for n, i in answers.items()]
    (folder / "ours.jsonl").write_text("\n".join(map(json.dumps, rows)))
    official, ours = (score("scienceqa", folder / name, data, "test") for name in ("official.json", "ours.jsonl"))
    assert classes(official) == classes(ours) and official.summary.unanswered == ours.summary.unanswered
    credited, unanswered = sum(gold(n) == i for n, i in answers.items()), sum(not 0 <= i < 3 for i in indices)
    assert (classes(ours)["Avg"], ours.summary.unanswered) == ((credited, 5), unanswered)


def test_gaps_are_listed_and_not_scored(judged, files):
    """Of predictions, split and problems the intersection counts; what is missing on each side is told by id."""
    (files / "data" / "pid_splits.json").write_text(json.dumps({"test": ["1", "2", "3", "77"], "train": ["6"]}))
    report = judged({"1": "A", "2": "A", "6": "A", "4": "B", "unknown": "A", "77": "A"})
    assert (report.scored, classes(report)["Avg"]) == (2, (1, 2))
    assert report.gaps["no_prediction"] == ["3"]
    assert report.gaps["no_question"] == ["6", "4", "unknown", "77"]
    assert report.gaps["no_problem"] == ["pid_splits.json · 77 · problems.json has no problem of this id"]


@pytest.mark.parametrize(("predictions", "ids"), [({"x": "A"}, "x"), ({}, "none")])
def test_nothing_in_common_is_refused(judged, predictions, ids):
    """With the ids of both sides: 0 of 0 questions would look like a result."""
    told = f"predictions.jsonl · it answers no question of scienceqa test · its ids: {ids}; those of the questions: 1, 2, 3"
    with pytest.raises(DataError, match=told):
        judged(predictions)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"id": "1", "output": "A"}\n{"id": "1", "output": "B"}', "line 2 · id · '1' occurs twice"),
        ('{"id": "1", "output": "A"}\n{"id": "2"}', "line 2 · output · Field required"),
        ('{"id": "1", "output": "A"}\n{"id"', "line 2 · not JSON"),
        ('{"id": "1", "answer": "A"}', "output · Field required"),
        ('{"results": {"1": "B"}}', "1 · results · 'B' is no index · expected an integer, -1 for no answer"),
        ('{"results": {"1": true}}', "True is no index"),
        ('{"outputs": {"1": 5}}', "1 · outputs · not a text"),
        ('{"results": [1, 2]}', "results and outputs must be objects by id"),
        ('{"1": "A"}', "1 · not an answer in one of the forms"),
    ],
)
def test_files_in_no_form_are_refused(tmp_path, text, told):
    """With the row and what is expected."""
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_predictions(path)
    assert told in str(caught.value)


def test_a_missing_file_or_split_is_refused(files):
    """By name."""
    with pytest.raises(DataError, match="no such file of predictions"):
        score("scienceqa", files / "none", str(files / "data"))
    with pytest.raises(RunError, match="scienceqa has no split 'dev' · allowed: test, val, train"):
        score("scienceqa", files / "none", str(files / "data"), "dev")


# Reading answers


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("The answer is (B).", 1),
        ("Answer: The answer is B. BECAUSE: the answer is long", 1),
        ("the answer is (b)", 1),
        ("The answer is B because it lives.", 1),
        ("Plants grow. So the answer is: C", 2),
        ("The answer is (B). Again: The answer is B.", 1),
        ("The answer is E. coli.", 1),  # an option's own words
        ("E. coli", 1),
        ("west virginia", 0),
        ("Answer: A", 0),
        ("The answer is A mixture", None),
        ("A dog", None),
        ("B or C", None),
        ("(A) looks wrong. The answer is (B).", 1),
        ("The correct answer is B.", 1),
        ("The correct answer is (B).", 1),
        ("It lives, so the best choice is: (b)", 1),
        ("The answer is option B.", 1),
        ("Option B", 1),
        ("**B**", 1),
        ("The answer is **B**.", 1),
        ("**E. coli**", 1),
        ("B. It is alive, and A is not.", 1),
        ("C. a newt", 2),
        ("The wrong answer is B.", None),
        ("The answer is (B) or (C).", None),
        ("The answer is B, C", None),
        ("Option B or C.", None),
        ("B. or C.", None),
        ("(A) and (B)", None),
        ("A: no wait, C", None),
        ("D", None),
        ("(Z)", None),
        ("4", None),
        ("", None),
        (None, None),
    ],
)
def test_readings(text, index):
    """A letter where it cannot be a word; the words of one option; nothing else."""
    choices = ("West Virginia", "E. coli", "a newt")
    assert read_option(text, choices) == index


@pytest.mark.parametrize(("text", "index"), [("A. Vitamin C", 0), ("B*", 1)])
def test_marks_in_an_options_words(text, index):
    """A letter there is no other option's; an asterisk without a second one is a part of the word."""
    assert read_option(text, ("vitamin C", "B*", "2*3")) == index


@given(st.text(max_size=80), st.integers(0, 6))
def test_any_text_names_an_option_that_is_there_or_none(text, count):
    """Whatever a model writes."""
    assert read_option(text, [f"choice {n}" for n in range(count)]) in (None, *range(count))


@given(st.text(max_size=60).filter(lambda text: "he answer is" not in text), st.integers(0, 2), st.sampled_from(SPELLINGS[:2]))
def test_an_answer_is_found_behind_any_reasoning(text, index, spelling):
    """Its reasoning is what stands before it."""
    output = f"{text}\n{spelling.format(letter(index))}"
    read = split_output(output)
    assert read_option(read.answer, CHOICES) == index


# Rationales


@pytest.mark.parametrize("name", ["two_stage", "one_stage", "answer_first", "four_stage"])
@pytest.mark.parametrize("style", ["xml", "brackets"])
def test_stages_are_read_from_their_tags(name, style):
    """Whichever of the built-in formats wrote the text."""
    cot_format = FORMATS[name].spelled(style)
    stages = {stage.name: "B" if stage.is_answer else f"why {stage.name}" for stage in cot_format.stages}
    text = "".join(piece for _, piece in cot_format.write(stages))
    reasons = "\n".join(text for text in stages.values() if text != "B")
    assert split_output(text) == Prediction("B", reasons)
    assert split_output(text.removesuffix(cot_format.closing(cot_format.stages[-1]))).answer == "B"


OWN = {"name": "own", "stages": [{"name": "THINK", "made_of": ["A"]}, {"name": "SAY", "is_answer": True}]}


@pytest.mark.parametrize(
    ("told", "text", "read"),
    [
        ({"name": "four_stage_untagged"}, "A fern grows.\nIt is x.\nB", Prediction("B", "A fern grows.\nIt is x.")),
        ({"name": "two_stage"}, "The answer is (B).", Prediction(None)),
        (OWN, "<THINK> why </THINK>\n\n<SAY> B </SAY>", Prediction("B", "why")),
        (OWN, "[THINK] why [/THINK]\n\n[SAY] B [/SAY]", Prediction("B", "why")),
        (None, "The answer is (B).", Prediction("The answer is (B).")),
    ],
)
def test_what_eval_wrote_is_read_in_the_format_that_it_asked_in(tmp_path, told, text, read):
    """As `eval` reads it, not by what the text looks like; where nothing tells the format, the text does."""
    path = published.json_lines(tmp_path / "out.jsonl", [{"id": "1", "output": text}])
    (tmp_path / "out.meta.json").write_text(json.dumps({"model": "m", "format": told} if told else {"model": "m"}))
    assert read_predictions(path) == ({"1": read}, [])


@pytest.mark.parametrize("meta", ["[", "[1]", '{"format": {"name": "none"}}', '{"format": {"nam": "two_stage"}}'])
def test_a_format_that_cannot_be_read_is_told(tmp_path, meta):
    """The text is not guessed at then."""
    path = published.json_lines(tmp_path / "out.jsonl", [{"id": "1", "output": "B"}])
    (tmp_path / "out.meta.json").write_text(meta)
    with pytest.raises(DataError, match=r"out.meta.json · no format can be read in it · evaluate again, into another file"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("text", "rationale"),
    [
        ("Solution: Plants grow. The answer is (A).", "Plants grow."),
        ("Answer: The answer is A. BECAUSE: Plants grow.", "Plants grow."),
        ("The answer is (A).", None),
        ("(A) fern", None),
        ("", None),
    ],
)
def test_reasoning_without_tags(text, rationale):
    """It stands before the answer, or behind BECAUSE."""
    assert split_output(text).rationale == rationale


def test_rouge_and_failure_modes(judged):
    """Questions without a gold rationale count to neither; one that is not given counts as 0; the rest is by the table."""
    right, wrong_text = "Solution: Plants grow. A fern grows. ", "Solution: Plants grow. "
    report = judged(
        {
            "1": f"{right}The answer is (A).",
            "2": f"{right}The answer is (A).",
            "3": f"{wrong_text}The answer is (C).",
            "4": "The answer is (A).",
            "5": f"{wrong_text}The answer is (A).",
        }
    )
    assert report.summary.rouge_l == pytest.approx((1 + 1 + 2 * 2 / (2 + 5) + 0) / 4)
    right_wrong = {"rationale_right": (1, 1), "rationale_wrong": (1, 1)}
    expected = {name: {"answer_right": r, "answer_wrong": w} for name, (r, w) in right_wrong.items()}
    assert report.summary.failure_modes == expected
    assert sum(sum(row.values()) for row in expected.values()) == 4


@pytest.mark.parametrize(("rationale", "value"), [("LE", 2 * 3 / (3 + 5)), ("E", 1.0)])
def test_a_rationale_is_held_against_what_it_should_hold(judged, rationale, value):
    """A model that was taught the solution alone is not asked for the lecture: 3 of 5 words, or all of 3."""
    report = judged({"1": "A fern grows. The answer is (A)."}, rationale=rationale)
    assert report.summary.rouge_l == pytest.approx(value)


# A-OKVQA


@pytest.fixture
def aokvqa(tmp_path):
    """The report on A-OKVQA's predictions; the second question is difficult to answer directly."""
    records = [published.aokvqa_record(), published.aokvqa_record(1, difficult_direct_answer=True)]
    data = str(published.aokvqa(tmp_path / "data", records))

    def report(predictions):
        (tmp_path / "predictions.jsonl").write_text(predictions)
        return score("aokvqa", tmp_path / "predictions.jsonl", data)

    return report


@pytest.mark.parametrize(("text", "credit"), [("cab", 1), ("Bus.", 2 / 3), ("taxi", 1 / 3), ("boat", 0), ("", 0)])
def test_a_direct_answer_is_worth_a_third_for_each_of_ten(aokvqa, text, credit):
    """At most one point; difficult questions are left out; the accuracy is that of the options alone."""
    report = aokvqa(json.dumps({"q0": {"multiple_choice": "cab", "direct_answer": text}, "q1": {"direct_answer": "cab"}}))
    direct = report.summary.groups["direct answer"]
    assert (direct.correct, direct.total) == (pytest.approx(credit), 1)
    assert (report.summary.accuracy.correct, report.summary.accuracy.total) == (1, 1)
    assert report.summary.unanswered == (text == "")
    assert report.gaps["no_question"] == ["q1/direct"]


def test_our_own_form_of_its_answers(aokvqa):
    """A direct answer has the question's id and `/direct`."""
    rows = [{"id": "q0", "output": "(D) cab"}, {"id": "q0/direct", "output": "cab"}, {"id": "q1", "output": "A"}]
    report = aokvqa("\n".join(map(json.dumps, rows)))
    found = {name: (share.correct, share.total) for name, share in report.summary.groups.items()}
    assert found == {"multiple choice": (1, 2), "direct answer": (1, 1)}


# Invariants of the figures


@given(st.lists(st.tuples(st.sampled_from(["science", "history"]), st.sampled_from([0.0, 1.0]), st.booleans()), max_size=12))
def test_figures_add_up(rows):
    """Each question counts once to the accuracy and once to its subject; what is not answered is counted."""
    judged = [
        Judged(Sample(str(n), (Exchange("?"),), choices=CHOICES, meta={"subject": s, "difficulty": "Easy"}), v, None)
        for n, (s, credit, told) in enumerate(rows)
        for v in [Verdict("A" if told else None, credit if told else 0.0)]
    ]
    summary = summarise(find("mmmu"), judged)
    assert summary.accuracy.total == len(rows) == sum(share.total for name, share in summary.groups.items() if name != "Easy")
    assert summary.accuracy.correct == sum(credit for _, credit, told in rows if told)
    assert summary.unanswered == sum(not told for _, _, told in rows)
    assert (summary.rouge_l, summary.failure_modes) == (None, None)
