"""A judge grades what the rule cannot: its replies are read strictly, kept beside the answers, and asked for once."""

import json
from types import SimpleNamespace

import pytest
import typer

from lora_cot.commands import answers
from lora_cot.engines.chat import Patience
from lora_cot.engines.teacher import Teacher
from lora_cot.errors import AccessError, EngineError, RunError, StoppedError
from lora_cot.evaluation import judging, run
from lora_cot.evaluation.benchmarks import find
from lora_cot.evaluation.comparing import compare
from lora_cot.evaluation.predictions import score
from lora_cot.evaluation.verdicts import Verdict
from lora_cot.recipe import Recipe
from lora_cot.recipe.model import ModelSection
from lora_cot.search.trace import Completion
from lora_cot.types import Exchange, Sample
from tests import published
from tests.scripted_server import KEY, Fault, serve, text_of

QUICK = Patience(timeout_seconds=1, tries=2, first_wait_seconds=0.01, longest_wait_seconds=1)
MMVET, MATHVISTA = find("mmvet").grader, find("mathvista").grader
TEACHER = f"teacher (prompt {MMVET.version})"
"""Who graded MM-Vet."""


def judge(server, **keys):
    return Teacher(server.url, "teacher", KEY, patience=QUICK, **keys)


def said(body):
    """The answer that a request is about."""
    return text_of(body).rpartition("Model's answer: ")[2].partition("\nGrade:")[0]


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """`evaluate` on eight questions of MM-Vet, answered `answer 0` to `answer 7`; the last one's answer is empty."""
    published.table_of("mmvet", tmp_path / "mmvet", "test", [published.mmvet_row(number) for number in range(8)])
    own = {"benchmark": "mmvet", "data": str(tmp_path / "mmvet")}
    recipe = Recipe(name="x", model=ModelSection(base="x"), format={"name": "direct"}, evaluation=own)
    family = SimpleNamespace(most_images=None, tag_style="xml")
    opened = SimpleNamespace(recipe=recipe, model="m", quantization="auto", family=family)
    monkeypatch.setattr(run, "open_any", lambda *_: opened)
    asked = []

    def written(_opened, cot_format, samples, _config):
        for sample in samples:
            asked.append(sample.id)
            number = int(sample.id.removeprefix("v1_"))
            text = "" if number == 7 else f"answer {number}"
            yield sample, Completion(sample.id, text, cot_format.parse(text), "complete", [], 3, 12, 4)

    monkeypatch.setattr(run, "answers", written)
    evaluated = lambda named=True, **keys: run.evaluate("m", "mmvet" if named else None, **keys)  # noqa: E731
    evaluated.asked, evaluated.path = asked, tmp_path / "out.jsonl"
    return evaluated


def grades(body, _number):
    return f"0.{said(body)[-1]}"


def test_a_judge_grades_each_answer_once(evaluate):
    """Its grades are the credits, in the report and the rows; a second call asks neither it nor the model anything."""
    with serve(grades) as server:
        report = evaluate(output=evaluate.path, judge=judge(server))
        assert report.accuracy.correct == pytest.approx(sum(range(7)) / 10) and report.unanswered == 1
        assert all(body["temperature"] == 0 and body["model"] == "teacher" for body in server.requests)
        assert len(server.requests) == 7 and server.keys[-1] == f"Bearer {KEY}"
        assert all(text_of(body).startswith(MMVET.rules) and "x=" not in said(body) for body in server.requests)
        again = evaluate(output=evaluate.path, judge=judge(server))
        assert (len(server.requests), len(evaluate.asked)) == (7, 8)
    assert again.accuracy == report.accuracy
    assert [report.to_json()["grading"][key] for key in ("by", "judged", "asked", "failed")] == [TEACHER, 7, 7, {}]
    told = dict(report.lines())["graded by"]
    assert told == f"the judge {TEACHER}: 7 answers, 7 of them asked now, 0 failed; the rule decided on the rest"
    rows = [json.loads(line) for line in evaluate.path.read_text().splitlines()]
    assert [row["answer"] for row in rows] == [*(f"answer {number}" for number in range(7)), None]
    assert [(row["credit"], row["graded_by"]) for row in rows] == [(number / 10 % 0.7, TEACHER) for number in range(8)]
    assert KEY not in evaluate.path.with_suffix(".judged.jsonl").read_text() + json.dumps(report.to_json())


def test_without_a_judge_the_rule_decides(evaluate):
    """And the result says so; an answer that a judge had graded gets the rule's verdict back."""
    with serve(grades) as server:
        evaluate(output=evaluate.path, judge=judge(server))
    report = evaluate(output=evaluate.path)
    assert (report.accuracy.correct, report.grading.by) == (0, "exact")
    assert ("graded by", "exact: the benchmark's rule, no judge") in report.lines()
    assert {json.loads(line)["graded_by"] for line in evaluate.path.read_text().splitlines()} == {"exact"}


def test_replies_that_cannot_be_read_are_listed(evaluate):
    """They count as wrong, and are asked for again; so is what got no reply, and what one request was refused for."""
    bad = {"answer 1": "about 0.5", "answer 2": Fault(400, "too long"), "answer 3": Fault(500, "away"), "answer 4": "1.5"}
    with serve(lambda body, _: bad.get(said(body), "1.0")) as server:
        report = evaluate(output=evaluate.path, judge=judge(server))
        assert (report.accuracy.correct, report.unanswered) == (3, 5)
        told = report.to_json()["grading"]["failed"]
        assert (
            set(told) == {"v1_1", "v1_2", "v1_3", "v1_4"} and told["v1_1"] == "the judge's reply cannot be read: 'about 0.5'"
        )
        assert "too long" in told["v1_2"] and "500" in told["v1_3"]
        (found,) = compare(evaluate.path).measured
        assert (found.ungraded, found.unanswered, found.failed) == (4, 5, 0)
        bad.clear()
        before = len(server.requests)
        assert evaluate(output=evaluate.path, judge=judge(server)).accuracy.correct == 7
        assert len(server.requests) - before == 4


def test_a_judge_that_is_gone_ends_it(evaluate):
    """After several answers running; what was said before is kept. A key or name that is refused ends it at once."""
    with serve(lambda body, number: grades(body, 0) if number < 2 else Fault(500, "away")) as server:
        with pytest.raises(EngineError, match=r"5 answers running got no answer, the last: .*500"):
            evaluate(output=evaluate.path, judge=judge(server))
        server.answer = grades
        before = len(server.requests)
        assert evaluate(output=evaluate.path, judge=judge(server)).grading.asked == 5 == len(server.requests) - before
    with serve([Fault(401, "no")]) as server, pytest.raises(AccessError, match="401"):
        evaluate(output=evaluate.path.with_name("other.jsonl"), judge=judge(server))


@pytest.mark.parametrize("named", [True, False])
def test_a_judge_that_cannot_be_asked_is_told_before_any_answer(evaluate, named):
    """Its address or name is wrong, or the grades that are kept are another's; of the recipe's own benchmark too."""
    with serve(grades) as server:
        evaluate(output=evaluate.path, judge=judge(server))
        evaluate.asked.clear()
        evaluate.path.unlink()
        server.models = ["teacher", "second"]
        second = Teacher(server.url, "second", patience=QUICK)
        for wrong, error, what in (
            (Teacher("http://127.0.0.1:1", "teacher", patience=QUICK), EngineError, "127.0.0.1:1"),
            (Teacher(server.url, "other", patience=QUICK), AccessError, "no model 'other'"),
            (second, RunError, "begun with model 'teacher', now 'second'"),
        ):
            with pytest.raises(error, match=what):
                evaluate(output=evaluate.path, judge=wrong, named=named)
    assert evaluate.asked == []


@pytest.mark.parametrize(("status", "rest"), [(500, "5 answers running got no answer"), (401, "401")])
def test_answers_that_are_kept_nowhere_outlast_the_judge(evaluate, status, rest):
    """Those that it did not grade have no grade, and are listed."""
    with serve(lambda *_: Fault(status, "away")) as server:
        report = evaluate(judge=judge(server))
    failed = report.grading.failed
    assert set(failed) == {f"v1_{number}" for number in range(7)} and any(rest in why for why in failed.values())
    assert (report.accuracy.correct, report.unanswered, len(evaluate.asked)) == (0, 8, 8)


def test_where_a_judge_is_served_is_no_matter(evaluate):
    """The same model at another address goes on."""
    with serve(grades) as server:
        evaluate(output=evaluate.path, judge=judge(server))
    with serve(grades) as server:
        assert evaluate(output=evaluate.path, judge=judge(server)).grading.asked == 0


def test_grades_of_another_judge_are_not_mixed_in(evaluate):
    """Another judge or prompt is refused with what differs; another answer to a question is graded anew."""
    with serve(grades) as server:
        evaluate(output=evaluate.path, judge=judge(server))
        server.models = ["teacher", "other"]
        with pytest.raises(RunError, match=r"out.judged.jsonl · begun with model 'teacher', now 'other'"):
            evaluate(output=evaluate.path, judge=Teacher(server.url, "other", patience=QUICK))
        path = evaluate.path.with_suffix(".judged.jsonl")
        path.write_text(path.read_text().replace('"answer 3"', '"answer 3 or so"'))
        assert evaluate(output=evaluate.path, judge=judge(server)).grading.asked == 1
        assert len(path.read_text().splitlines()) == 7


def test_an_interrupt_keeps_what_was_said(evaluate, monkeypatch):
    """And says where."""
    real = judging.ask_each

    def stopped(*given):
        for number, pair in enumerate(real(*given)):
            if number == 3:
                raise KeyboardInterrupt
            yield pair

    with serve(grades) as server:
        monkeypatch.setattr(judging, "ask_each", stopped)
        with pytest.raises(StoppedError, match=r"its grades are in .*out.judged.jsonl: the same command goes on"):
            evaluate(output=evaluate.path, judge=judge(server))
        monkeypatch.setattr(judging, "ask_each", real)
        assert evaluate(output=evaluate.path, judge=judge(server)).grading.asked == 4


def test_a_benchmark_with_a_rule_alone_takes_no_judge():
    """It is refused before anything is asked."""
    with pytest.raises(RunError, match="--judge · mmstar is graded by its rule alone · drop it"):
        judging.check_judge("mmstar", Teacher("http://127.0.0.1:1", "x"))
    with pytest.raises(AccessError, match="no address of a server"):
        judging.check_judge("mmvet", Teacher("ftp://x", "x"))
    with pytest.raises(AccessError, match="and the key in --judge-key-file"):
        judging.check_judge("mmvet", Teacher("http://me:word@x", "x"))


@pytest.mark.parametrize(
    ("reply", "credit"),
    [("0.5", 0.5), ("1.0", 1), ("1", 1), (" Grade: 0.0\n", 0), ("0", 0), ("0.75.", 0.75)]
    + [(reply, None) for reply in ("1.1", "-0.5", "0.5/1", "5", "good", "", "0.5 since", ".5", "0,5")],
)
def test_a_grade_is_a_number_from_0_to_1(reply, credit):
    """And nothing else."""
    verdict = MMVET.read(reply, "a fox", Sample("", (Exchange(""),)))
    assert (None if verdict is None else verdict.credit) == credit


NUMBER = Sample("1", (Exchange("How many?", answer="5"),), meta={"options": (), "type": "integer", "precision": None})


def test_mathvistas_judge_is_asked_where_the_rule_reads_nothing():
    """It picks the answer out, which the rule then compares; an answer that is none is wrong, another reply unreadable."""
    assert MATHVISTA.prompt("The answer is 5.", NUMBER) is None
    prompt = MATHVISTA.prompt("5 of the 9, so 5", NUMBER)
    assert prompt.endswith("Question: How many?\nResponse: 5 of the 9, so 5\nAnswer:")
    read = [MATHVISTA.read(reply, "", NUMBER) for reply in ("5", "Answer: 6", "None.", "5 or 6", "perhaps")]
    assert read == [Verdict("5", 1), Verdict("6", 0), Verdict(None, 0), None, None]


def test_another_prompt_is_another_version():
    """What is kept was said to one prompt."""
    changed = judging.Grader(MMVET.rules + " ", MMVET.ask, MMVET.read)
    assert len({MMVET.version, MATHVISTA.version, changed.version}) == 3


def test_the_command_names_failed_grades(evaluate, capsys, tmp_path):
    """With exit code 1; options of a judge that is not named are refused."""
    key = tmp_path / "key"
    key.write_text(KEY)
    with serve(lambda body, _: "no grade" if said(body) == "answer 1" else "1.0") as server:
        with pytest.raises(typer.Exit):
            answers.evaluate(
                "m", "mmvet", str(tmp_path / "mmvet"), judge=server.url, judge_model="teacher", judge_key_file=key
            )
        assert server.keys[-1] == f"Bearer {KEY}"
    told = capsys.readouterr()
    assert "1 answers got no grade, and count as wrong:\n  v1_1: the judge's reply cannot be read" in told.err
    with pytest.raises(RunError, match="--judge-model · it says how a server is asked, and none is named · add --judge URL"):
        answers.evaluate("m", "mmvet", judge_model="x")
    with pytest.raises(RunError, match="--judge-model · a judge has a name"):
        answers.evaluate("m", "mmvet", judge="http://127.0.0.1:1")


def test_answers_that_were_made_elsewhere_are_graded_too(evaluate, tmp_path, capsys):
    """`score` asks the same judge as `eval`, and again only for what it did not grade; without one the rule decides."""
    path = published.json_lines(tmp_path / "p.jsonl", [{"id": f"v1_{n}", "output": f"answer {n}"} for n in range(4)])
    key, bad = tmp_path / "key", {"answer 1": "no grade"}
    key.write_text(KEY)
    given = ("mmvet", path, str(tmp_path / "mmvet"))
    with serve(lambda body, _: bad.get(said(body), grades(body, 0))) as server:
        with pytest.raises(typer.Exit):
            answers.score(*given, judge=server.url, judge_model="teacher", judge_key_file=key, as_json=True)
        assert server.keys[-1] == f"Bearer {KEY}"
        told = capsys.readouterr()
        assert "1 answers got no grade, and count as wrong:\n  v1_1: the judge's reply cannot be read" in told.err
        assert json.loads(told.out)["grading"]["by"] == TEACHER
        bad.clear()
        report = score(*given, judge=judge(server))
        assert (report.grading.asked, len(server.requests), report.scored) == (1, 5, 4)
        with pytest.raises(RunError, match="--judge · mmstar is graded by its rule alone"):
            score("mmstar", path, judge=judge(server))
    assert report.summary.accuracy.correct == pytest.approx(0.6)
    line = f"the judge {TEACHER}: 4 answers, 1 of them asked now, 0 failed; the rule decided on the rest"
    assert ("graded by", line) in report.lines()
    assert (score(*given).summary.accuracy.correct, score(*given).grading.by) == (0, "exact")
