"""The benchmark that draws accuracy against compute: what it runs, what it keeps, and what its tables say."""

import importlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from typing import get_args

import pytest
from PIL import Image

from lora_cot.recipe.schema import SearchSection
from lora_cot.search import swires
from tests.conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "search_curve.py"


@pytest.fixture
def curve(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("search_curve")


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("curve_report")


def result(right, tokens=100.0, prompts=0.0):
    """What an evaluation gave, as far as the tables need it."""
    costs = {"tokens_per_question": tokens, "judge_prompts_per_question": prompts, "seconds_per_question": tokens / 1000}
    return {"report": costs, "right": {f"q{number}": one for number, one in enumerate(right)}}


def test_every_strategy_is_drawn(curve, report):
    """All but that of split formats, each with its own look."""
    strategies = set(get_args(SearchSection.model_fields["strategy"].annotation)) - {"two_pass"}
    assert {arm.split(",")[0] for arm in curve.ARMS} == strategies
    assert set(report.STYLES) == set(curve.ARMS) and len(set(report.STYLES.values())) == len(report.STYLES)
    assert {arm for pair in report.PAIRS for arm in pair} <= set(curve.ARMS)


def test_what_is_run(curve):
    """One text is drawn once; what one candidate makes the same as a sample is not run; greedy decoding has no seed."""
    arms = ["greedy", "sample", "best_of_n", "stage_beam"]
    cells = [(cell.arm, cell.candidates, cell.seed) for cell in curve.planned(["m"], arms, [1, 4], [0, 1])]
    assert cells == [
        ("greedy", 1, 0),
        *(("sample", 1, seed) for seed in (0, 1)),
        *(("best_of_n", 4, seed) for seed in (0, 1)),
        *(("stage_beam", count, seed) for count in (1, 4) for seed in (0, 1)),
    ]
    names = {cell.name for cell in curve.planned(["a", "b"], list(curve.ARMS), [1, 2, 4, 8], [0, 1])}
    assert len(names) == 2 * (1 + 2 * (1 + 6 * 3 + 3 * 4))


def test_a_search_is_what_its_arm_says(curve, monkeypatch):
    """The strategy, N, the seed and the arm's own keys are the question, beside the model and the questions."""
    monkeypatch.setattr(curve, "fingerprint", lambda folder: f"of {folder}")
    monkeypatch.setattr(curve, "calibrated", lambda *_: {"mean": -1.0, "std": 0.5})
    options = Namespace(limit=7, output=None)
    asked = curve.question(curve.Cell("m", "stage_beam, self-judge", 4, 2), "run", options)
    search = {"strategy": "stage_beam", "candidates": 4, "seed": 2, "scorer": "self_judge"}
    assert asked == {"model": "of run", "limit": 7, "search": search}
    retraced = curve.question(curve.Cell("m", "swires", 2, 0), "run", options)["search"]
    assert retraced["swires"] == {"mean": -1.0, "std": 0.5}
    for arm in curve.ARMS:
        SearchSection.model_validate(curve.question(curve.Cell("m", arm, 2, 0), "run", options)["search"])


def test_what_is_there_is_not_run_again(curve, monkeypatch, tmp_path):
    """A benchmark that was stopped goes on; what another model or other questions gave is measured anew."""
    run = []

    def one(cell, _asked, _folder, _output):
        run.append(cell.candidates)
        if cell.candidates == 8:
            raise KeyboardInterrupt
        return {**result([1]), "report": {"accuracy": {"accuracy": 1.0}}}

    monkeypatch.setattr(curve, "one", one)
    cells = [curve.Cell("m", "best_of_n", count, 0) for count in (2, 4, 8)]

    def measured(cells, limit=1):
        run.clear()
        asked = {cell: {"limit": limit, "candidates": cell.candidates} for cell in cells}
        return curve.measured(cells, asked, {"m": tmp_path}, tmp_path)

    with pytest.raises(KeyboardInterrupt):
        measured(cells)
    first = measured(cells[:2])
    assert run == [] and [kept["asked"]["candidates"] for kept in first.values()] == [2, 4]
    with pytest.raises(KeyboardInterrupt):
        measured(cells)
    assert run == [8]
    assert measured(cells[:2], limit=2).keys() == set(cells[:2]) and run == [2, 4]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}
    moved = replace(cells[0], seed=1)
    measured([moved])
    assert run == [2]


def test_a_cutoff_is_measured_once(curve, monkeypatch, tmp_path):
    """For a model; of another one anew, and on questions that are not asked later."""
    opened = Namespace(
        recipe=Namespace(format=Namespace(build=lambda: Namespace(spelled=lambda _: "format")), search=Namespace(stages={})),
        family=Namespace(tag_style="<"),
    )
    seen = []

    def calibrate(_engine, _format, samples, _scorer, config):
        seen.append((len(samples), {sample.id.split("-")[0] for sample in samples}, config.scorer))
        return swires.Calibration(-0.5, 0.25, 100)

    monkeypatch.setattr(curve, "open_model", lambda _: opened)
    monkeypatch.setattr(curve, "engine_of", lambda *_: None)
    monkeypatch.setattr(swires, "calibrate", calibrate)
    monkeypatch.setattr(curve, "fingerprint", lambda folder: folder)
    for folder in ("one", "one", "other"):
        assert curve.calibrated("a model", folder, tmp_path) == {"mean": -0.5, "std": 0.25}
    assert seen == [(curve.CALIBRATION, {"validation"}, "logprob")] * 2


@pytest.fixture
def summary(curve, report):
    """Two models; of the first, sample and stage_beam with two seeds each."""
    cells = [(curve.Cell("one", "greedy", 1, 0), result([1, 1, 0, 0]))]
    for seed, (alone, beam) in enumerate((([1, 0, 0, 0], [1, 1, 1, 1]), ([1, 1, 0, 0], [1, 1, 1, 0]))):
        cells.append((curve.Cell("one", "sample", 1, seed), result(alone)))
        cells.append((curve.Cell("one", "stage_beam", 4, seed), result(beam, 400.0 + 20 * seed)))
    cells.append((curve.Cell("two", "sample", 1, 0), result([1, 0])))
    cells.append((curve.Cell("two", "stage_beam, self-judge", 4, 0), result([1, 0], 400.0, 2.5)))
    told = {"device": "AMD, 1 thread", "questions": 4, "seeds": [0, 1], "seconds": 1.0}
    return report.summarise(cells) | told


def test_seeds_are_taken_together(summary):
    """Accuracy and costs are means over them, the interval is that of the questions; a sample has no N of its own."""
    beam = next(one for one in summary["points"] if one["arm"] == "stage_beam")
    assert {key: beam[key] for key in ("seeds", "accuracy", "tokens", "judge_prompts", "seconds")} == {
        "seeds": 2,
        "accuracy": 7 / 8,
        "tokens": 410.0,
        "judge_prompts": 0.0,
        "seconds": pytest.approx(0.41),
    }
    assert beam["interval"][0] < 0.5
    apart = {(one["model"], one["first"], one["second"]): one["difference"] for one in summary["differences"]}
    assert apart == {
        ("one", "stage_beam", "sample"): 0.5,
        ("one", "stage_beam", "greedy"): 3 / 8,
        ("two", "stage_beam, self-judge", "sample"): 0.0,
    }


def test_the_tables_say_it(report, summary):
    """A row for each arm and N; in bold what lies outside its interval."""
    text = report.page_lines(summary)
    assert text[0] == "4 test questions, 2 seeds; tokens, judge prompts and seconds a question; AMD, 1 thread."
    assert [line for line in text if line.startswith("**")] == ["**One**", "**Two**"]
    assert "| `sample` | 1 | 37.5 % [9.2, 78.1] | 100 | 0.0 | 0.100 |" in text
    assert "| `stage_beam`, self-judge | 4 | 50.0 % [9.5, 90.5] | 400 | 2.5 | 0.400 |" in text
    assert "| `stage_beam` − `sample` | **+50.0 [+12.5, +87.5]** |" in text
    assert "| `stage_beam`, self-judge − `sample` | +0.0 [+0.0, +0.0] |" in text
    widths = {line.count("|") for line in report.table(summary["points"])}
    assert widths == {7}


def test_a_page_gets_tables_and_picture(report, summary, monkeypatch, tmp_path):
    """Between its markers, however often; a page without them is left alone."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_docs(summary, page)
    once = page.read_text()
    assert (
        once.startswith(f"before\n{report.BEGIN}\n4 test") and once.endswith(f"|\n{report.END}\nafter\n") and "old" not in once
    )
    report.write_docs(summary, page)
    assert page.read_text() == once
    picture = tmp_path / report.PICTURE
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width > 800 and image.height > 600
    assert picture.stat().st_size < 150_000
    for marks in ("", "BE" * 2, "EB", "B", "E", "BBE", "BEE"):
        text = "".join(report.BEGIN if mark == "B" else report.END for mark in marks)
        page.write_text(text)
        with pytest.raises(SystemExit, match="there is no such pair"):
            report.write_docs(summary, page)
        assert page.read_text() == text


@pytest.mark.slow
def test_the_benchmark_from_end_to_end(make_recipe, tmp_path):
    """On a base that was taught nothing, with four questions; a second time there is nothing left to run."""
    from lora_cot.training.run import train

    folder = train(make_recipe(tmp_path, "training.max_steps=1", "data.eval=[]"), tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- search_curve: begin -->\n<!-- search_curve: end -->\n")
    arms = ["greedy", "sample", "majority, weighted", "sentence_beam", "stage_beam", "stage_beam, self-judge", "adaptive"]
    command = [sys.executable, str(SCRIPT), "--arms", *arms, "--candidates", "1", "2", "--limit", "4", "--docs", str(page)]
    command += ["--models", f"a base={folder}", f"the same={folder}", "--output", str(tmp_path / "out"), "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for missing in (18, 0):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        assert f"{18 - missing} evaluations are there, {missing} to run" in done.stderr
        report = json.loads(done.stdout)
        assert len(report["points"]) == 18 and report == json.loads((tmp_path / "out/report.json").read_text())
    one, other = ([p for p in report["points"] if p["model"] == name] for name in ("a base", "the same"))
    assert [(p["arm"], p["accuracy"], p["tokens"]) for p in one] == [(p["arm"], p["accuracy"], p["tokens"]) for p in other]
    assert page.read_text().count("| `stage_beam` |") == 4 and (tmp_path / "search_curve.png").is_file()
