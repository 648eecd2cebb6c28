"""What the benchmarks share, and that each tells its options."""

import importlib
import json
import runpy
import sys

import numpy as np
import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if "def main(" in path.read_text())


@pytest.fixture
def measuring(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("measuring")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_tells_its_options(name, tmp_path, monkeypatch, capsys):
    """From any folder: its own text, which names the call, and the one that all have."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert not ended.value.code and f"python benchmarks/{name}.py " in told and "--json " in told
    assert not any(tmp_path.iterdir())


def test_a_mean_has_students_interval(measuring):
    """By hand for three values; one value has none."""
    found = measuring.spread([0.5, 0.6, 0.7])
    half = 4.302653 * 0.1 / 3**0.5
    assert found["mean"] == pytest.approx(0.6) and found["interval"] == pytest.approx([0.6 - half, 0.6 + half])
    assert measuring.points(found) == "60.0 [35.2, 84.8]"
    assert measuring.points(measuring.spread([0.25])) == "25.0"


@pytest.mark.parametrize(
    ("values", "quantile"), [(2, 12.7062), (3, 4.3027), (4, 3.1824), (5, 2.7764), (11, 2.2281), (31, 2.0423)]
)
def test_students_quantile_is_that_of_the_tables(measuring, values, quantile):
    """For any number of values; a mean whose interval ends at 0 has a p of 5 %."""
    assert measuring.student(values - 1) == pytest.approx(quantile, abs=5e-5)
    steps = [number / values for number in range(values)]
    low, _ = measuring.spread(steps)["interval"]
    assert measuring.p_value([step - low for step in steps]) == pytest.approx(0.05)


def test_a_difference_is_one_between_the_same_questions(measuring):
    """Nothing is between equals; what is always ahead is beyond doubt; what wins as often as it loses is not."""
    rates = np.array([1.0] * 80 + [0.0] * 20)
    assert measuring.difference(rates, rates) == {"difference": 0.0, "interval": [0.0, 0.0]}
    assert measuring.difference(np.ones(9), np.zeros(9)) == {"difference": 1.0, "interval": [1.0, 1.0]}
    better = np.array([1.0] * 90 + [0.0] * 10)
    found, back = measuring.difference(better, rates), measuring.difference(rates, better)
    assert found["difference"] == pytest.approx(0.1) == -back["difference"]
    low, high = found["interval"]
    half = 1.96 * np.std(better - rates) / np.sqrt(100)
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.012) and low > 0
    assert back["interval"] == pytest.approx([-high, -low])
    mixed = measuring.difference(np.array([1.0, 0.0] * 50), np.array([0.0, 1.0] * 50))["interval"]
    assert mixed[0] < -0.1 and mixed[1] > 0.1


def test_figures_are_told_as_json_or_in_lines(measuring, capsys):
    """The lines that a script has made, or one for each figure."""
    report = {"ratio": 0.123456, "device": "here"}
    measuring.tell(report, True)
    measuring.tell(report, False)
    measuring.tell(report, False, ["| ratio |"])
    told = capsys.readouterr().out.splitlines()
    assert json.loads(told[0]) == report and told[1:] == ["ratio   0.1235", "device  here", "| ratio |"]


def test_a_recipe_is_trained_only_once(measuring, monkeypatch, tmp_path):
    """Into a folder of its name; one that is whole is left as it is."""
    from lora_cot.training import run

    trained = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "train", lambda recipe: trained.append(recipe.name))
    monkeypatch.setattr("lora_cot.checkpoints.folders.is_finished", lambda folder, recipe: recipe.name == "there")
    path = ROOT / "recipes" / "mini" / "llava_direct.yaml"
    (tmp_path / "runs" / "there").mkdir(parents=True)
    (tmp_path / "runs" / "there" / "recipe.yaml").touch()
    folders = [measuring.trained(path, [f"name={name}"]) for name in ("there", "new")]
    assert [folder.name for folder in folders] == ["there", "new"] and trained == ["new"]
