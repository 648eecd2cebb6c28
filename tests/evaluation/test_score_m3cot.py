"""M3CoT's own rules of reading, its form of predictions; LLaVA-Bench by ROUGE-L."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_cot.data import llava_wild
from lora_cot.errors import DataError, RunError
from lora_cot.evaluation.benchmarks import find
from lora_cot.evaluation.m3cot import chosen_letter
from lora_cot.evaluation.predictions import score, split_output
from lora_cot.evaluation.verdicts import Verdict
from lora_cot.recipe.sources import LlavaWildSource
from tests import published
from tests.published import json_lines, m3cot_record

CHOICES = ("fern", "red fern", "a newt")


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        # What follows the last [Answer], up to [Rationale] or [Context].
        ("(A) [Answer] (B)", "B"),
        ("[Answer] (A) [Answer] (C)", "C"),
        ("[Answer] (A) [Rationale] (B)", "A"),
        ("[Answer] (A) [Context] (B)", "A"),
        ("[Answer] (A) [Context] (B) [Rationale] (C)", "A"),
        ("[Answer] (A) [Rationale] (B) [Context] (C)", "A"),
        ("[Rationale] (B) [Answer] (A)", "A"),
        ("[Rationale] (B) [Context] (C)", "C"),  # no [Answer]: the whole text
        ("[Answer] [Rationale] (B)", None),
        ("[answer] (A) [Rationale] (B)", "B"),  # only as it is spelled
        ("(B) [Answer]", None),
        ("[Answer](A)[Answer]\n", None),
        # The last letter in parentheses, whatever the options.
        ("(A) or (B)?", "B"),
        ("(c)", "C"),
        ("(Z)", "Z"),
        ("(z) fern", "Z"),
        ("(AB) ((B)) (C", "B"),
        ("( A ) (1) (é)", "A"),  # none in parentheses, but a letter alone
        ("(A)\n(B)\n", "B"),
        # The last option, in the order of options, whose text occurs.
        ("It is a newt, no fern", "C"),
        ("A NEWT", "C"),
        ("a red fern", "B"),  # of options that hold one another, the later one
        ("fern", "A"),
        ("B, I mean fern", "A"),
        ("unfernlike", "A"),
        # The last option's letter that stands alone, capital before small.
        ("C or B", "C"),
        ("B or c", "B"),
        ("b or a", "B"),
        ("B.", "B"),
        ("Is it B?A!", "B"),
        ("Answer:\nC\n", "C"),
        ("a.b,c", "C"),
        ("A: no", None),
        ("*B*", None),
        ("B</s>", None),
        ("B\tor", None),  # a tab parts no words
        ("B\r\n", None),
        ("Apple", None),
        ("D", None),  # beyond the options
        ("d e f", None),
        # Nothing.
        ("", None),
        ("\n \n", None),
        ("ϕ ☃ 蕨", None),
        ("FAILED", None),
    ],
)
def test_readings(text, chosen):
    """Each rule, its order and its edges."""
    assert chosen_letter(text, CHOICES) == chosen


@pytest.mark.parametrize(
    ("text", "choices", "chosen"),
    [
        ("Straße", ("strasse", "STRASSE"), None),  # case is lowered, not folded
        ("ÉCLAIR", ("éclair", "x"), "A"),
        ("the İ", ("i̇", "y"), "A"),
        ("1 and 2", ("1", "2", "12"), "B"),
        ("12", ("1", "2", "12"), "C"),
        ("no.", ("no.", "yes."), "A"),
        ("yes", ("no.", "yes."), None),
        ("anything", ("one", ""), "B"),  # an empty option occurs in every text
        ("x\ny", ("x y", "x\ny"), "B"),
        ("G", tuple("1234567"), "G"),  # the released code has six letters
    ],
)
def test_readings_of_other_options(text, choices, chosen):
    """Unicode, options inside options, marks inside options."""
    assert chosen_letter(text, choices) == chosen


def reference(text, choices):
    """The rules once more, in the words in which they were given, each a loop."""
    if text.find("[Answer]") >= 0:
        text = text[text.rindex("[Answer]") + len("[Answer]") :]
        for end in ("[Rationale]", "[Context]"):
            if end in text:
                text = text[: text.index(end)]
    last = None
    for start in range(len(text) - 2):
        opened, inner, closed = text[start : start + 3]
        if opened == "(" and closed == ")" and inner.isascii() and inner.isalpha():
            last = inner.upper()
    if last:
        return last
    for number, choice in enumerate(choices):
        if text.lower().count(choice.lower()):
            last = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number]
    if last:
        return last
    for mark in "\n.,!?":
        text = text.replace(mark, " ")
    for alphabet in ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"):
        for name in alphabet[: len(choices)]:
            if f" {name} " in f" {text} ":
                last = name.upper()
        if last:
            return last
    return None


PIECES = ["[Answer]", "[Rationale]", "[Context]", "(A)", "(b)", "(Z)", "fern", "Red Fern", "A", "b", "C", "d"]
TEXTS = st.lists(st.one_of(st.sampled_from([*PIECES, " ", "\n", ".", ",", "!", "?", "\t"]), st.text(max_size=3))).map("".join)
OPTIONS = st.lists(st.one_of(st.sampled_from(["fern", "red fern", "1", "."]), st.text(max_size=3)), min_size=1, max_size=8)


@given(TEXTS, OPTIONS)
def test_the_rules_agree_with_a_plain_reading_of_them(text, choices):
    """Whatever is written, whatever the options."""
    assert chosen_letter(text, choices) == reference(text, choices)


@given(st.text())
def test_any_text_chooses_a_capital_letter_or_nothing(text):
    """It never raises."""
    chosen = chosen_letter(text, CHOICES)
    assert chosen is None or re.fullmatch("[A-Z]", chosen)


# Files of predictions


def row(number, text, **keys):
    """A row of M3CoT's own form."""
    record = m3cot_record(number, **keys)
    kept = {key: record[key] for key in ("id", "answer", "choices", "domain", "topic")}
    return kept | {"messages": ["[Question] …", "(A) no", "Please select.", text]}


ROWS = [
    row(0, "[Answer] (A)"),
    row(1, "(B)", answer="B"),
    row(2, "newt"),
    row(3, "(A)", topic="social-science", answer=0),
    row(4, "no idea", domain="mathematics", topic="algebra", answer=2),
    row(5, "c", domain="mathematics", topic="algebra", answer=2),
]
COUNTS = {
    "science": (3, 4),
    "natural-science": (2, 3),
    "social-science": (1, 1),
    "mathematics": (1, 2),
    "algebra": (1, 2),
    "Avg": (4, 6),
    "accuracy": (4, 6),
}


def counts(report):
    found = report.to_json()
    return {name: (found[name]["correct"], found[name]["total"]) for name in COUNTS}


def test_rows_bring_their_questions_along(tmp_path):
    """The last message is the answer, the first is not; by domain, topic and overall; an index is a letter."""
    report = score("m3cot", json_lines(tmp_path / "p.jsonl", ROWS))
    found = report.to_json()
    assert counts(report) == COUNTS
    assert (found["split"], found["scored"], found["unanswered"], found["metric"]) == (None, 6, 1, "accuracy")
    assert set(found["shares"]) == set(COUNTS) and not any(report.gaps.values())


def test_outputs_are_scored_with_the_benchmarks_files(tmp_path):
    """The same answers by id, held against the questions of a split; what has no partner is listed. No image is needed."""
    records = [m3cot_record(n, **({"topic": "social-science"} if n == 3 else {})) for n in range(5)]
    data = published.m3cot(tmp_path / "data", records, images=False)
    texts = ["[Answer] (A) [Rationale] (B)", "(B)", " newt \n", "(A)"]
    rows = [{"id": f"physics-{n}", "output": text} for n, text in enumerate(texts)] + [{"id": "x", "output": None}]
    report = score("m3cot", json_lines(tmp_path / "p.jsonl", rows), str(data))
    shares = {name: (share.correct, share.total) for name, share in report.summary.groups.items()}
    assert shares == {"science": (2, 4), "natural-science": (1, 3), "social-science": (1, 1), "Avg": (2, 4)}
    assert (report.split, report.gaps["no_prediction"], report.gaps["no_question"]) == ("test", ["physics-4"], ["x"])
    again = score("m3cot", json_lines(tmp_path / "m.jsonl", [row(n, text) for n, text in enumerate(texts)]), str(data))
    assert again.summary.groups == report.summary.groups


def test_a_text_without_stages_stands_as_it_is():
    """Its blanks can be an option's; nothing but blanks is no answer."""
    assert [split_output(text).answer for text in (" B\n", " \n", "")] == [" B\n", None, None]


def test_outputs_with_stages_are_read_in_their_answer_stage(tmp_path):
    """As `eval` judges them; a message is judged as it stands."""
    data = published.m3cot(tmp_path / "data", [m3cot_record(0)], images=False)
    text = "<CONCLUSION> fern </CONCLUSION> (B)"
    outputs = json_lines(tmp_path / "o.jsonl", [{"id": "physics-0", "output": text}])
    assert score("m3cot", outputs, str(data)).summary.accuracy.correct == 1
    assert score("m3cot", json_lines(tmp_path / "m.jsonl", [row(0, text)])).summary.accuracy.correct == 0


def test_of_a_repeated_id_the_first_row_counts(tmp_path):
    """As the released scorer has it; the others are told."""
    path = json_lines(tmp_path / "p.jsonl", [row(0, "(A)"), row(1, "(A)"), row(0, "(B)", answer="B")])
    report = score("m3cot", path)
    assert (report.summary.accuracy.correct, report.summary.accuracy.total) == (2, 2)
    assert report.gaps["repeated"] == ["p.jsonl line 3 · physics-0"]


def test_classes_with_names_of_keys_hide_none(tmp_path):
    """They stand under `shares` all the same; a domain and a topic of one name count once."""
    path = json_lines(tmp_path / "p.jsonl", [row(0, "(A)", domain="scored", topic="split"), row(1, "", domain="x", topic="x")])
    found = score("m3cot", path).to_json()
    assert (found["scored"], found["split"], found["x"]) == (2, None, {"correct": 0, "total": 1})
    assert found["shares"]["scored"]["total"] == 1


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"answer": "a"}, "p.jsonl line 2 · answer · 'a' is no option · expected a letter, A, or an index, 0"),
        ({"answer": -1}, "line 2 · answer · '-1' is no option"),
        ({"answer": True}, "line 2 · answer · Input should be a valid string"),
        ({"choices": []}, "line 2 · choices · List should have at least 1 item"),
        ({"choices": "AB"}, "line 2 · choices · Input should be a valid list"),
        ({"domain": None}, "line 2 · domain · Input should be a valid string"),
        ({"topic": ""}, "line 2 · topic · String should have at least 1 character"),
        ({"messages": []}, "line 2 · messages · List should have at least 1 item"),
        ({"messages": [{"role": "assistant"}]}, "line 2 · messages.0 · Input should be a valid string"),
    ],
)
def test_rows_of_another_form_are_refused(tmp_path, keys, told):
    """All of them, with what is expected."""
    path = json_lines(tmp_path / "p.jsonl", [row(0, "(A)"), row(1, "(A)") | keys])
    with pytest.raises(DataError) as caught:
        score("m3cot", path)
    assert told in str(caught.value)


def test_what_is_needed_is_told(tmp_path):
    """Outputs need the questions; rows that bring them along have no split."""
    outputs = json_lines(tmp_path / "p.jsonl", [{"id": "1", "output": "A"}])
    with pytest.raises(RunError, match="--data · the questions of m3cot do not come along · name the folder"):
        score("m3cot", outputs)
    with pytest.raises(RunError, match="--split · the predictions bring their questions along · drop it, or add --data"):
        score("m3cot", json_lines(tmp_path / "m.jsonl", ROWS), split="dev")
    mixed = json_lines(tmp_path / "x.jsonl", [ROWS[0], {"id": "1", "output": "A"}])
    with pytest.raises(DataError, match=r"line 2 · answer · Field required(.|\n)*x.jsonl · questions that cannot be scored"):
        score("m3cot", mixed)


def test_other_benchmarks_read_messages_too(tmp_path):
    """With their files: no other brings its questions along."""
    data = published.scienceqa(tmp_path / "data", {"1": published.problem(split="test")}, {"test": ["1"]})
    path = json_lines(tmp_path / "p.jsonl", [{"id": "1", "messages": ["?", "The answer is (A)."]}])
    assert score("scienceqa", path, str(data)).summary.accuracy.correct == 1
    with pytest.raises(RunError, match="--data · the questions of scienceqa do not come along"):
        score("scienceqa", path)


# LLaVA-Bench


def wild(tmp_path, outputs):
    data = published.llava_wild(tmp_path / "data", images=False)
    rows = [{"id": n, "output": text} for n, text in enumerate(outputs)]
    return score("llava_wild", json_lines(tmp_path / "p.jsonl", rows), str(data))


def test_answers_are_worth_their_rouge_l(tmp_path):
    """F1 of the longest common words, in order, case and endings aside; the mean over all and over each kind."""
    report = wild(tmp_path, ["The big red fern grows 0 leaves.", "ferns: BIG leaf red", " "])
    found = report.to_json()
    second = 2 * 2 / (7 + 4)  # big, red, or fern, leaf, of "the big red fern grow 1 leav"
    values = [found["shares"][name]["accuracy"] for name in ("conv", "detail", "complex", "Avg")]
    assert values == pytest.approx([1, second, 0, (1 + second) / 3])
    assert found["rouge_l"] == pytest.approx((1 + second) / 3)
    assert (found["metric"], found["unanswered"], found["failure_modes"]) == ("ROUGE-L", 1, None)
    sample = llava_wild.questions(LlavaWildSource(source="llava_wild", path=str(tmp_path / "data")), "scoring").samples[0]
    assert [find("llava_wild").judge(text, sample) for text in (None, " ", " red ")] == [
        Verdict(None, 0.0),
        Verdict(None, 0.0),
        Verdict("red", pytest.approx(2 / 8)),
    ]
    labels = [label for label, _ in report.summary.lines()]
    assert labels[0] == "ROUGE-L" and "ROUGE-L of rationales" not in labels


def test_all_of_the_real_benchmark(shared_data, tmp_path):
    """The reference answers themselves have 100; what says nothing has what docs/interleaved.md says of it."""
    folder = shared_data("llavaw_questions.jsonl").parent
    source = LlavaWildSource(source="llava_wild", path=str(folder))
    samples = llava_wild.questions(source, "scoring").samples

    def mean(say):
        rows = [{"id": sample.id, "output": say(sample)} for sample in samples]
        report = score("llava_wild", json_lines(tmp_path / "p.jsonl", rows), str(folder))
        assert report.scored == 60
        return tuple(round(100 * value, 2) for value in (report.summary.rouge_l, report.summary.groups["conv"].value))

    assert mean(lambda sample: sample.last.answer) == (100, 100)
    assert (mean(lambda _: "yes")[0], mean(lambda _: "A")[0]) == (0.22, 2.58)
    assert mean(lambda sample: sample.last.question) == (19.9, 44.26) and mean(lambda _: "") == (0, 0)
