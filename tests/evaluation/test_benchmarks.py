"""Benchmarks by name: their questions, what counts as right, and the groups they are told apart by."""

import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lora_cot.commands import answers
from lora_cot.errors import DataError, RecipeError, RunError
from lora_cot.evaluation import run
from lora_cot.evaluation.benchmarks import BENCHMARKS, find
from lora_cot.evaluation.comparing import compare
from lora_cot.evaluation.predictions import score
from lora_cot.evaluation.questions import Wanted
from lora_cot.formats import FORMATS
from lora_cot.recipe import Recipe
from lora_cot.recipe.model import ModelSection
from lora_cot.search.trace import Comparison, Completion, TracedStage
from tests import published

SHAPES = BENCHMARKS["shapes"]


def shapes(count):
    return SHAPES.load(Wanted("test", count)).samples


@pytest.fixture
def benchmark_files(tmp_path):
    """Where three questions of a benchmark are, made up; None for one that brings its own."""

    def make(name, split):
        folder = tmp_path / split
        if name == "scienceqa":
            return str(published.scienceqa(folder, {str(n): published.problem() for n in range(3)}, {split: ["0", "1", "2"]}))
        if name == "aokvqa":
            return str(published.aokvqa(folder, [published.aokvqa_record(n) for n in range(3)], split))
        if name == "m3cot":
            return str(published.m3cot(folder, [published.m3cot_record(n) for n in range(3)], split))
        if name == "llava_wild":
            return str(published.llava_wild(folder))
        if name == "multi30k":
            return str(published.multi30k(folder, split))
        if name == "shapes":
            return None
        published.table_of(name, folder, split)
        return str(folder)

    return make


def right(benchmark, text, sample):
    return benchmark.judge(text, sample).credit == 1


def test_an_unknown_benchmark_is_refused():
    """The error names the nearest one and all there are."""
    with pytest.raises(
        RunError, match=r"no benchmark 'shape' · did you mean 'shapes'[?] allowed: ai2d, aokvqa, hallusionbench, "
    ):
        find("shape")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_can_be_run(name, benchmark_files):
    """Every split gives as many questions as asked for, each with a right answer; no answer is always wrong."""
    benchmark = find(name)
    for split in benchmark.splits[:3]:
        samples = benchmark.load(Wanted(split, 2, benchmark_files(name, split))).samples
        assert len(samples) == len({sample.id for sample in samples}) >= 2
        for sample in samples:
            gold = dict.fromkeys(sample.meta.get("direct_answers", ()) if not sample.choices else (), 0)
            assert right(benchmark, next(iter(gold), sample.last.answer).rpartition("<OR>")[2], sample)
            for nothing in (None, "", " \n"):
                verdict = benchmark.judge(nothing, sample)
                assert (verdict.credit, (verdict.answer or "").strip()) == (0, "")
            assert benchmark.groups(sample) or name == "ai2d"


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "shapes"])
def test_a_benchmark_without_its_files_is_refused(name):
    """Its questions do not come along; the option that names them is told."""
    with pytest.raises(RunError, match=f"--data · the questions of {name} do not come along · name the folder"):
        find(name).load(Wanted(find(name).splits[0]))


def test_shapes_are_told_apart_by_skill_and_steps():
    """Each question counts to its skill and to one of two groups of steps; all groups occur."""
    samples = shapes(200)
    groups = {tuple(SHAPES.groups(sample)) for sample in samples}
    one_step = {(skill, "one step") for skill in ("count", "existence", "attribute")}
    assert groups == one_step | {(skill, "more than one step") for skill in ("same_as", "relation", "comparison")}


RIGHT_AND_WRONG = [("2", "2.", "3"), ("yes", " Yes", "no"), ("red", "RED", "red circle")]


@pytest.mark.parametrize(("gold", "as_right", "as_wrong"), RIGHT_AND_WRONG)
def test_shapes_compare_short_answers(gold, as_right, as_wrong):
    """Case, spaces and a final stop do not matter, everything else does."""
    sample = next(sample for sample in shapes(200) if sample.last.answer == gold)
    assert right(SHAPES, as_right, sample)
    assert not right(SHAPES, as_wrong, sample)


ANY_FAMILY = SimpleNamespace(most_images=None, tag_style="xml")


@pytest.fixture
def evaluate(monkeypatch):
    """`evaluate` of a model that is not loaded and answers half of the questions, all of those right."""

    def evaluated(recipe=None, answered=None, **keys):
        recipe = Recipe(name="x", model=ModelSection(base="x"), **(recipe or {}))
        monkeypatch.setattr(
            run,
            "open_any",
            lambda *_: SimpleNamespace(recipe=recipe, model="a model", quantization="auto", family=ANY_FAMILY),
        )
        monkeypatch.setattr(run, "answers", lambda *given: zip(given[2], answered or written(*given), strict=True))
        return run.evaluate("a model", **keys)

    def written(_opened, _format, samples, config):
        evaluated.config = config
        gold = [FORMATS["direct"].parse(sample.last.answer if n % 2 else "") for n, sample in enumerate(samples)]
        return [
            Completion(s.id, s.last.answer if parsed.answer else "", parsed, "complete", [], 3, 12, 4)
            for s, parsed in zip(samples, gold, strict=True)
        ]

    return evaluated


def test_a_report_counts_everything_once(evaluate):
    """Right, unanswered and valid add up to the questions, in the groups too; costs are those of one question."""
    report = evaluate(limit=40)
    assert (report.split, report.strategy, report.unanswered) == ("test", "greedy", 20)
    assert (report.accuracy.correct, report.accuracy.total, report.format_validity.correct) == (20, 40, 20)
    assert sum(share.total for share in report.groups.values()) == 2 * 40
    assert report.groups["one step"].total + report.groups["more than one step"].total == 40
    assert list(report.per_question.values())[:3] == [12, 3, 4]


STEP = TracedStage(None, (), (Comparison(0, 1, None, True, 0),) * 2, skipped=3, failures=1)
STOPPED = ("complete", "complete", "no end after 7 tokens", "no end after 9 tokens", "out of time: deadline_seconds is 2")
SPENT = {
    "generated_tokens": 60,
    "kept_tokens": 15,
    "judge_prompts": 20,
    "judge_tokens": 0,
    "flips": 10,
    "skipped_judgements": 15,
}


def test_a_report_tells_what_every_search_cost(evaluate, monkeypatch, tmp_path, capsys):
    """Its totals are those of the questions, which the file of answers has too; people and programs read the same."""
    found = [Completion("", "", FORMATS["direct"].parse(""), stopped, [STEP], 3, 12, 4, seconds=0.5) for stopped in STOPPED]
    report = evaluate(answered=found, limit=5, output=tmp_path / "out.jsonl", search={"candidates": 6, "swires.keep": 1})
    assert report.totals == {**SPENT, "judge_failures": 5, "looks": 0, "seconds": 2.5}
    assert report.stopped == {"no end": 2, "out of time": 1}
    rows = [json.loads(line)["totals"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == [one.totals for one in found] and rows[0]["seconds"] == 0.5
    monkeypatch.setattr(run, "evaluate", lambda *_, **_keys: report)
    answers.evaluate("a model", as_json=True)
    said = capsys.readouterr()
    assert "the scorer logprob gave no verdict 5 times: likelihood decided instead" in said.err
    printed = json.loads(said.out)
    assert {key: printed[key] for key in ("strategy", "candidates", "scorer", "seed", "flip_rate", "stopped")} == {
        "strategy": "greedy",
        "candidates": 6,
        "scorer": "logprob",
        "seed": 0,
        "flip_rate": 1.0,
        "stopped": report.stopped,
    }
    assert (printed["totals"], printed["tokens_per_question"], printed["judge_prompts_per_question"]) == (report.totals, 12, 4)
    assert printed["seconds_per_question"] == report.totals["seconds"] / 5
    answers.evaluate("a model")
    told = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if not line.startswith(" "))
    assert told["search"].strip() == "greedy, seed 0"
    chosen = dict(replace(report, strategy="majority").lines())["search"]
    assert chosen == "majority, 6 candidates, scorer logprob, seed 0"
    assert told["tokens a question"].strip() == "12.0 (3.0 kept), 60 in all"
    assert told["judge prompts a question"].strip() == "4.0 (10 flips (100.0% of pairs), 15 not needed, 5 failed in all)"
    assert told["seconds a question"].strip() == f"{report.totals['seconds'] / 5:.3f}, {report.totals['seconds']:.1f} in all"
    assert (told["stopped: no end"].strip(), told["stopped: out of time"].strip()) == ("2", "1")


def test_a_search_is_changed_by_key(evaluate):
    """Inner keys are dotted; what they stand beside stays. A key that is none is refused, a stage of another format too."""
    stages = {"CAPTION": {"max_new_tokens": 9}}
    recipe = {"search": {"stages": stages, "swires": {"retraces": 1}}, "format": {"name": "four_stage"}}
    evaluate(recipe, limit=1, search={"strategy": "sample", "swires.mean": -1, "stages.CAPTION.keep": 2})
    seen = evaluate.config
    assert (seen.strategy, seen.swires.mean, seen.swires.retraces) == ("sample", -1, 1)
    assert (seen.stages["CAPTION"].keep, seen.stages["CAPTION"].max_new_tokens) == (2, 9)
    for key, told in (
        ("kep", "search.kep · unknown key · did you mean 'keep'?"),
        ("stages.CAPTIONS.keep", "search.stages.CAPTIONS · .* no such stage · did you mean 'CAPTION'?"),
        ("keep.more", "search.keep.more · 'more' is inside a value that holds no keys"),
        ("keep", r"search.keep · .* \(got 'x'\)"),
    ):
        with pytest.raises(RecipeError, match=told):
            evaluate(recipe, limit=1, search={key: "x"})


def test_an_unknown_split_is_refused(evaluate):
    """The error names the splits there are."""
    with pytest.raises(RunError, match="shapes has no split 'dev' · allowed: test, validation, train"):
        evaluate(split="dev")


def test_a_page_that_cannot_be_written_is_told_before_any_answer(evaluate, monkeypatch, tmp_path):
    """Nothing of the attempt is left where it can."""
    report = lambda **keys: evaluate(limit=2, page=tmp_path / "new" / "p.html", **keys)  # noqa: E731
    assert report().accuracy.total == 2 and [path.name for path in (tmp_path / "new").iterdir()] == ["p.html"]
    (tmp_path / "new" / "p.html").unlink()
    with pytest.raises(RunError, match="shapes has no split 'dev'"):
        report(split="dev")
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "new" / "p.html").mkdir()
    monkeypatch.setattr(run, "answers", lambda *_: pytest.fail("a question is asked"))
    with pytest.raises(RunError, match=r"p.html · cannot be written: Is a directory · name another file"):
        run.evaluate("a model", page=tmp_path / "new" / "p.html")


@pytest.mark.parametrize("name", ["sacrebleu", "nltk"])
def test_what_judges_translations_is_missed_before_a_model_is_loaded(monkeypatch, name):
    """Of a recipe's own benchmark before it is trained, too."""
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(run, "open_any", lambda *_: pytest.fail("a model is loaded"))
    recipe = Recipe(name="x", model=ModelSection(base="x"), evaluation={"benchmark": "multi30k"})
    for call in (lambda: run.evaluate("a model", "multi30k"), lambda: run.check_questions(recipe)):
        with pytest.raises(RunError, match=rf"{name} · it is not installed · pip install 'lora_cot\[translation\]'"):
            call()


def test_a_recipe_says_what_is_evaluated(evaluate):
    """The recipe's split and limit hold where the caller names none, and the caller's where it does."""
    section = {"evaluation": {"split": "validation", "limit": 3}}
    report, told = evaluate(section), evaluate(section, split="train", limit=2)
    assert (told.split, told.accuracy.total) == ("train", 2)
    assert (report.split, report.accuracy.total) == ("validation", 3)


@pytest.fixture
def scienceqa(tmp_path):
    """A folder of three questions in the test split, and the recipe's source of it, whose images are gone."""
    problems = {str(n): published.problem(split="test", image="image.png" if n == 2 else None) for n in range(3)}
    folder = published.scienceqa(tmp_path / "data", problems, {"test": ["0", "1", "2", "gone"]})
    (tmp_path / "captions.json").write_text('{"1": "A leaf."}')
    keys = {"captions": str(tmp_path / "captions.json"), "rationale": "E", "image_root": str(tmp_path)}
    return {"source": "scienceqa", "path": str(folder), **keys}


@pytest.mark.parametrize("told", [True, False])
def test_a_model_is_asked_as_it_was_trained(evaluate, scienceqa, tmp_path, told):
    """Files, captions and what a rationale holds come from the recipe's own source; another folder can be named."""
    recipe = {"data": {"train": [scienceqa | ({} if told else {"path": "elsewhere"})]}, "format": {"name": "direct"}}
    data = None if told else scienceqa["path"]
    page = tmp_path / "page.html"
    report = evaluate(recipe, benchmark="scienceqa", data=data, output=tmp_path / "out.jsonl", page=page)
    left_out = re.search(r"<th[^>]*>left out</th></tr>.*?(\d+)</td></tr>", page.read_text(), re.DOTALL)
    assert int(left_out[1]) == report.left_out
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    contexts = [(row["id"], row["question"].partition("Context: ")[2]) for row in rows]
    assert contexts == [("0", "N/A"), ("1", "A leaf.")] + ([] if told else [("2", "N/A")])
    assert [(row["answer"], row["right"]) for row in rows[:2]] == [(None, False), ("A", True)]
    assert (report.left_out, report.to_json()["groups"]["Avg"]["total"]) == ((2, 2) if told else (1, 3))
    assert report.unanswered == sum(row["answer"] is None for row in rows)


def test_what_eval_writes_score_reads(evaluate, scienceqa, tmp_path):
    """Both judge alike, and `compare` sums up alike."""
    recipe = {"evaluation": {"benchmark": "scienceqa", "data": scienceqa["path"]}, "format": {"name": "direct"}}
    report = evaluate(recipe, output=tmp_path / "out.jsonl")
    (beside,) = compare(tmp_path / "out.jsonl").measured
    assert list(beside.groups.items()) == list(report.groups.items()) and beside.accuracy == report.accuracy
    again = score("scienceqa", tmp_path / "out.jsonl", scienceqa["path"])
    assert again.summary.groups == report.groups and again.summary.unanswered == report.unanswered
    assert (again.gaps["no_prediction"], len(again.gaps["no_problem"])) == ([], 1)


def test_no_question_at_all_is_an_error(evaluate, tmp_path):
    """Nothing of nothing would be 0 %."""
    folder = published.scienceqa(tmp_path, {"1": published.problem(answer=9)}, {"test": ["1"]})
    with pytest.raises(DataError, match=r"none of its questions can be asked\n.*9 is no index of its 3 options"):
        evaluate(benchmark="scienceqa", data=str(folder))
