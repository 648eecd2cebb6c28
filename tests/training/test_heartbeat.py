"""A run that hangs says which rank, and which samples, the others wait for."""

import json
import time

import pytest

from lora_cot.training import heartbeat
from lora_cot.training.heartbeat import Heartbeat, read, report
from lora_cot.training.run import train
from lora_cot.training.trainer import CotTrainer


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(heartbeat, "PERIOD", 0.02)


def test_it_speaks_once_then_less_and_less_often(tmp_path, capsys):
    """After the limit, after twice as long, and again from the start where something moved."""
    with Heartbeat(tmp_path, 0, 0.1, lambda number: [f"s{number}", "t"]) as pulse:
        pulse.at("the forward pass", 7, 3)
        time.sleep(0.55)
        lines = capsys.readouterr().err.splitlines()
        assert 1 <= len(lines) <= 3 and "has been in the forward pass of s3, t for 0 s, after step 7" in lines[0]
        pulse.at("reading a batch", 7, 4)
        time.sleep(0.05)
        assert capsys.readouterr().err == ""
        time.sleep(0.2)
        assert "reading a batch of s4, t" in capsys.readouterr().err
    assert not list((tmp_path / ".heartbeat").iterdir())


def test_a_run_that_moves_says_nothing(tmp_path, capsys):
    """However long it takes."""
    with Heartbeat(tmp_path, 0, 0.2, lambda _: []) as pulse:
        for step in range(20):
            pulse.at("the forward pass", step)
            time.sleep(0.02)
    assert capsys.readouterr().err == ""


def rank(number, passed, place="the backward pass", samples=("a",)):
    """A rank's row."""
    row = {"rank": number, "host": "h", "pid": 10 + number, "place": place, "step": 4, "passed": passed, "age": 0}
    return row | {"samples": list(samples), "since": time.time() - 61}


def test_the_rank_that_is_behind_is_named_and_who_waits():
    """All of them where none is behind; a long batch is cut short."""
    rows = [rank(0, 12), rank(1, 11, "the forward pass", map(str, range(10))), rank(2, 12)]
    assert report(rows) == [
        "no progress: rank 1 (process 11 on h) has been in the forward pass of "
        "0, 1, 2, 3, 4, 5, 6, 7 … for 61 s, after step 4",
        "  waiting for it: rank 0, 2",
    ]
    assert len(report([rank(0, 5), rank(1, 5)])) == 2


def test_files_that_are_torn_are_no_obstacle(tmp_path):
    """A rank's file may be gone or half written by another system."""
    (tmp_path / "rank0.json").write_text("{")
    (tmp_path / "rank1.json").write_text(json.dumps(rank(1, 1)))
    assert [row["rank"] for row in read(tmp_path)] == [1]


@pytest.mark.slow
def test_a_training_step_that_hangs_is_told_with_its_samples(make_recipe, tmp_path, monkeypatch, capsys):
    """The ids are those of the batch that is computed."""
    real, seen = CotTrainer.compute_loss, []

    def slow(self, *given, **more):
        seen.append(0)
        if len(seen) == 3:
            time.sleep(0.6)
        return real(self, *given, **more)

    monkeypatch.setattr(CotTrainer, "compute_loss", slow)
    train(make_recipe(tmp_path, "training.hang_after=0.3"), tmp_path)
    told = [line for line in capsys.readouterr().err.splitlines() if "has been in the forward pass" in line]
    assert told and "of train-0-" in told[0] and "after step 2" in told[0]
