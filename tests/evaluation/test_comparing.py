"""Evaluations side by side: the figures of each are those of its own report, and what differs by chance is told apart."""

import itertools
import json
import math
import re
import time

import pytest

import lora_cot
from lora_cot.commands import answers
from lora_cot.errors import DataError, RunError
from lora_cot.evaluation.benchmarks import SCIENCEQA_CLASSES
from lora_cot.evaluation.comparing import compare
from lora_cot.evaluation.metrics import bootstrap, mcnemar, paired


@pytest.fixture
def write(tmp_path):
    """A file of answers with these credits, as `eval --output` leaves it."""

    def written(name, credits, setting=None, **keys):
        told = {"benchmark": "mmbench", "split": "dev_en", "model": name, "search.strategy": "greedy", "search.candidates": 4}
        (tmp_path / f"{name}.meta.json").write_text(json.dumps(told | (setting or {})))
        rows = []
        for number, credit in enumerate(credits):
            row = {
                "id": str(number),
                "digest": "d",
                "question": f"{number}?",
                "answer": "A",
                "graded": True,
                "credit": credit,
                "graded_by": "exact",
                "counts": number != 9,
            }
            row |= {
                "groups": ["even" if number % 2 == 0 else "odd"],
                "sets": {"circular": str(number // 2)},
                "format": "complete",
                "stopped": "complete",
                "failed": False,
            }
            rows.append(row | {"totals": {"generated_tokens": 10 * number, "seconds": 0.5}} | keys)
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return written


A, B = [1, 0] * 5, [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]


def test_each_is_measured_and_held_against_the_first(write, tmp_path):
    """Shares, groups, sets and costs are each one's own; only questions that count are counted and paired."""
    found = compare(write("a", A), write("b", B), write("c", A), output=tmp_path / "page.html")
    assert (found.benchmark, found.split, found.graded_by, found.questions) == ("mmbench", "dev_en", "exact", 10)
    a, b, _ = found.measured
    assert [(one.accuracy.correct, one.accuracy.total) for one in (a, b)] == [(5, 9), (8, 9)]
    assert {name: (share.correct, share.total) for name, share in b.groups.items()} == {
        "even": (4, 5),
        "odd": (4, 5),
        "circular": (4, 5),
    }
    assert (a.groups["circular"].correct, b.tokens_per_question, b.seconds_per_question) == (0, 45, 0.5)
    beam = write("d", A, {"search.strategy": "stage_beam"})
    assert [one.search for one in compare(beam, tmp_path / "a.jsonl").measured] == ["stage_beam of 4 candidates", "greedy"]
    against = found.against_first
    assert (against["b"].better, against["b"].worse, against["b"].p) == (4, 1, mcnemar(4, 1))
    assert against["b"].difference == pytest.approx(3 / 9) and against["c"].p == 1
    assert against["b"].test == "McNemar's exact test" and lora_cot.compare is compare


def test_text_and_page_hold_what_the_json_does(write, tmp_path, capsys):
    """The page opens offline: no address in it; its plots can be read without seeing; names cannot become its code."""
    paths = [str(write("a", A)), str(write("b<script>", B))]
    answers.compare(paths, output=tmp_path / "page.html", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [one["accuracy"]["correct"] for one in told["measured"]] == [5, 8]
    assert told["against_first"]["b<script>"]["better"] == 4
    answers.compare(paths)
    text = capsys.readouterr().out
    assert "mmbench dev_en, 10 questions" in text and "+33.3 [" in text and "0.3750" in text and "even (5)" in text
    assert "McNemar's exact test, two-sided, not corrected" in text and "benchmark's rule (exact)" in text
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and not re.search(r"(src|href)=.https?:", page)
    assert page.count('<svg role="img" aria-label=') == 2 and "b&lt;script&gt;, all: 88.9" in page
    assert page.count("<caption>") == 3 and 'scope="row"' in page and "<title>Comparison on mmbench</title>" in page


def test_evaluations_of_something_else_are_refused(write):
    """With all that differs; so is one that a judge graded beside one that it did not."""
    first = write("a", A)
    with pytest.raises(RunError) as caught:
        compare(first, write("b", B, {"benchmark": "mmvet", "split": "val"}, graded_by="gpt", sets={}))
    for what in ("benchmark mmvet, and mmbench in a", "split val, and dev_en in a", "graded by gpt, and exact in a"):
        assert f"b · {what}" in str(caught.value)
    with pytest.raises(RunError, match="2 questions only in a: 8, 9"):
        compare(first, write("b", B[:8]))
    with pytest.raises(RunError, match="1 questions only in b: 9"):
        compare(write("c", A[:9]), write("b", B))
    with pytest.raises(RunError, match="10 questions with another text than in a: 0, 1, 2, 3, 4, …"):
        compare(first, write("b", B, question="?"))
    with pytest.raises(RunError, match="10 questions with other choices, images or gold answers than in a: 0, 1, 2, 3, 4, …"):
        compare(first, write("b", B, digest="e"))
    for keys in ({"counts": True}, {"groups": []}, {"sets": {"circular": None}}):
        with pytest.raises(DataError, match=r"questions count otherwise than in a \(counts, groups, sets\): .*evaluate again"):
            compare(first, write("b", B, **keys))
    with pytest.raises(RunError, match="named twice"):
        compare(first, first)
    (first.parent / "page.html").mkdir()
    for place in (first.parent / "page.html", first / "page.html"):
        with pytest.raises(RunError, match=r"page\.html · cannot be written: .* · name another file"):
            compare("no such file", output=place)


def test_files_of_no_evaluation_are_refused(write, tmp_path):
    """One that is not there, one of an older form, one that is torn, a page of another name."""
    first = write("a", A)
    with pytest.raises(DataError, match=r"b.jsonl · no such file of an evaluation · make it with eval --output"):
        compare(first, tmp_path / "b.jsonl")
    path = write("b", B)
    path.write_text(path.read_text().replace('"credit": 1, ', ""))
    with pytest.raises(DataError, match=r"b.jsonl line 1 · credit · Field required(.|\n)*it asks nothing twice"):
        compare(first, path)
    path = write("b", B)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=r"b.jsonl line 10 · not JSON"):
        compare(first, path)
    (tmp_path / "b.meta.json").unlink()
    with pytest.raises(DataError, match=r"b.meta.json · no such file of an evaluation"):
        compare(first, path)
    with pytest.raises(RunError, match=r"name a file that ends with .html"):
        compare(first, first, output=tmp_path / "page.pdf")
    with pytest.raises(RunError, match="one evaluation is nothing to compare"):
        answers.compare([str(first)])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text + text.splitlines()[0] + "\n", r"there twice: 0 · remove one of the two rows"),
        (lambda text: text.replace('"credit": 1', '"credit": NaN'), r"line 1 · credit · Input should be"),
        (
            lambda text: text.replace('"credit": 1', '"credit": 1.5'),
            r"line 1 · credit · Input should be less than",
        ),
        (lambda text: text.replace('"counts": true', '"counts": false'), r"no row counts to the accuracy · evaluate again"),
        (lambda text: text.replace('"circular"', '"other"'), r"sets that are not the benchmark's: 0, 1, 2, 3, 4, …"),
        (lambda text: text.replace('"digest": "d", ', ""), r"line 1 · digest · Field required"),
    ],
)
def test_rows_of_which_no_figures_can_be_made_are_refused(write, change, told):
    """With what is wrong, and the remedy; no figure is made of the others."""
    first, path = write("a", A), write("b", B)
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=told):
        compare(first, path)


def test_what_is_wrong_without_an_answer_is_counted(write, tmp_path, capsys):
    """Failed, ungraded, stopped, unanswered: a difference that is made of those is seen to be."""
    lost = write("b", [0] * 10, {"data": "other"}, failed=True, answer=None, stopped="failed")
    rest = write("c", [0] * 10, graded=False, stopped="no end after 9 tokens")
    found = compare(write("a", A, {"data": "here"}), lost, rest, output=tmp_path / "page.html")
    counts = [(one.unanswered, one.stopped, one.failed, one.ungraded) for one in found.measured]
    assert counts == [(0, 0, 0, 0), (10, 0, 10, 0), (0, 10, 0, 10)]
    told, again = "\n".join(found.lines()), "of 10 count as wrong: call eval again with its --output"
    assert f"b: 10 failed {again}" in told and f"c: 10 ungraded {again}" in told and "a: 10" not in told
    assert "a: a, greedy, data here." in told and "b: b, greedy, data other." in told
    assert "ungraded" in (tmp_path / "page.html").read_text()
    assert found.measured[1].to_json()["failed"] == 10


def test_questions_of_one_set_are_said_to_be_no_independent_ones(write):
    """Where several of a set count to the accuracy; a question that is in no set is in none."""
    setting = {"benchmark": "hallusionbench", "split": "all"}
    paths = [write(name, credits, setting, sets={"fAcc": None, "qAcc": "x"}) for name, credits in (("a", A), ("b", B))]
    found = compare(*paths)
    assert (found.shared, found.measured[0].groups["fAcc"].total, found.measured[0].groups["qAcc"].total) == (["qAcc"], 0, 1)
    told = "\n".join(found.notes())
    assert "fAcc, qAcc: shares of sets of questions, whose difference is not tested." in told
    assert "Questions of one set (qAcc) are not independent: p can be too small" in told
    assert "Questions of one set" not in "\n".join(compare(paths[0]).notes())


def test_groups_stand_in_the_published_order(write):
    """That of `eval`, classes without a question too."""
    setting, groups = {"benchmark": "scienceqa", "split": "test"}, ["NAT", "TXT", "G1-6", "Avg"]
    found = compare(write("a", A, setting, sets={}, groups=groups))
    assert list(found.measured[0].groups) == list(SCIENCEQA_CLASSES)
    assert {name for name, share in found.measured[0].groups.items() if share.total} == set(groups)
    assert ["SOC (0)", ""] in found.tables()[-1][1]


def test_a_run_names_its_own_evaluation(write, tmp_path):
    """A run that was measured after training is named by its folder; two files of one name by their paths."""
    for name, credits in (("one", A), ("two", B)):
        path = write("evaluation", credits)
        (tmp_path / name).mkdir()
        for file in (path, path.with_suffix(".meta.json")):
            file.rename(tmp_path / name / file.name)
    assert [one.name for one in compare(tmp_path / "one", tmp_path / "two").measured] == ["one", "two"]
    files = [tmp_path / name / "evaluation.jsonl" for name in ("one", "two")]
    assert [one.name for one in compare(*files).measured] == [str(file) for file in files]


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 5), (8, 1), (1, 8), (30, 12)])
def test_mcnemar_is_the_binomial_test(better, worse):
    """Against its definition: every outcome of the throws that is no likelier on either side; symmetric, at most 1."""
    throws = better + worse
    chances = [math.comb(throws, k) / 2**throws for k in range(throws + 1)]
    exact = sum(chance for k, chance in enumerate(chances) if abs(2 * k - throws) >= abs(better - worse))
    assert mcnemar(better, worse) == pytest.approx(min(1.0, exact)) == mcnemar(worse, better)


def test_mcnemar_of_many_questions():
    """In less than a second, and as the normal approximation with its correction has it."""
    start = time.process_time()
    p = mcnemar(9000, 9100)
    assert time.process_time() - start < 1
    assert p == pytest.approx(math.erfc(99 / math.sqrt(18100) / math.sqrt(2)), rel=1e-4)


def test_credits_in_parts_take_the_permutation_test():
    """Near the exact one over all signs, and the same each time; without a difference it is 1."""
    first, second = [0.5, 0.2, 0.0, 0.9, 0.4, 0.3, 0.1], [0.7, 0.1, 0.4, 1.0, 0.9, 0.3, 0.5]
    apart = [b - a for a, b in zip(first, second, strict=True) if a != b]
    signs = itertools.product((-1, 1), repeat=len(apart))
    sums = [abs(sum(s * d for s, d in zip(one, apart, strict=True))) for one in signs]
    exact = sum(one >= abs(sum(apart)) - 1e-9 for one in sums) / len(sums)
    found = paired(first, second)
    assert (found.test, found.p) == ("the permutation test", pytest.approx(exact, abs=0.02))
    assert found == paired(first, second)
    assert (found.better, found.worse) == (5, 1) and paired(first, first).p == 1


def test_the_bootstrap_is_about_as_wide_as_the_normal_interval():
    """Of a hundred differences; and of one value there is nothing to vary."""
    import numpy as np

    values = np.array([1.0, 0.0, 0.0, -1.0, 1.0] * 20)
    low, high = bootstrap(values)
    half = 1.96 * values.std() / 10
    assert low == pytest.approx(values.mean() - half, abs=0.03) and high == pytest.approx(values.mean() + half, abs=0.03)
    assert bootstrap(np.array([0.5])) == (0.5, 0.5)
