"""`annotate` when something breaks: a server, a connection, this process; and what the next run finds."""

import itertools
import json
import subprocess
import sys

import pytest

from lora_cot.engines.teacher import GIVE_UP_AFTER
from lora_cot.errors import AccessError, EngineError
from tests.annotation.conftest import QUICK, WRITE, four, ids, lines, number_of, right
from tests.scripted_server import KEY, Fault, completion, serve, two_stages

FORMAT_NAMES = ["two_stage", "four_stage"]


# Faults


def test_passing_faults_leave_no_trace(data, tmp_path, teach):
    """Every row's first answer is a fault; the files are those of a server without any."""
    faults = itertools.cycle(
        [Fault(500), Fault(429, headers={"Retry-After": "0"}), Fault(body='{"choices": [{"me'), Fault(body="{", drop=True)]
    )
    seen = set()

    def answer(body, _):
        number = number_of(body)
        if number in seen:
            return four(str(number))
        seen.add(number)
        return next(faults)

    with serve(answer) as server:
        report = teach(data(10), server, tmp_path / "out.jsonl")
    assert (report.used, report.failed, len(server.requests)) == (10, {}, 20)


def test_rows_without_an_answer_are_asked_the_next_time(data, tmp_path, teach):
    """They are in neither file, and told."""
    path, output = data(6), tmp_path / "out.jsonl"
    slow = Fault(seconds=1.5, body=completion(four("2")))
    with serve(lambda body, _: {1: Fault(500), 2: slow}.get(number_of(body), four(str(number_of(body))))) as server:
        report = teach(path, server, output)
        assert sorted(report.failed) == ["q1", "q2"] and "it took longer than 1 s" in report.failed["q2"]
        assert sorted(ids(output)) == ["q0", "q3", "q4", "q5"] and not (tmp_path / "out.aside.jsonl").exists()
        server.answer = right(four)
        assert (teach(path, server, output).asked, len(ids(output))) == (2, 6)


def test_a_server_that_dies_stops_it(data, tmp_path, teach):
    """After so many rows running, not after all; what is done is kept and not asked again."""
    path, output = data(40), tmp_path / "out.jsonl"
    with serve(lambda body, _: four(str(number_of(body))) if number_of(body) < 4 else Fault(503)) as server:
        with pytest.raises(EngineError, match=r"5 rows running got no answer, the last: .*503.* 4 rows are kept") as caught:
            teach(path, server, output, concurrency=1)
        assert caught.value.exit_code == 1 and len(server.requests) <= 4 + QUICK.tries * (GIVE_UP_AFTER + 1)
        assert len(ids(output)) == 4
        server.answer = right(four)
        assert teach(path, server, output).asked == 36


def test_a_server_that_rejects_all_stops_it(data, tmp_path, teach):
    """As with a parameter that it does not know."""
    with (
        serve([Fault(400, {"error": {"message": "no max_tokens"}})]) as server,
        pytest.raises(EngineError, match=r"no max_tokens.*--retry-aside"),
    ):
        teach(data(40), server, tmp_path / "out.jsonl", concurrency=1)
    assert GIVE_UP_AFTER <= len(server.requests) <= 2 * GIVE_UP_AFTER


@pytest.mark.parametrize(("status", "told"), [(401, "--teacher-key-file"), (404, "check the address")])
def test_a_wrong_key_or_address_is_said_at_once(data, tmp_path, teach, status, told):
    """Whether the list of models tells it or the first row; it is the input that is wrong."""
    with serve([Fault(status, {"error": {"message": f"not with {KEY}"}})]) as server:
        with pytest.raises(AccessError, match=told) as caught:
            teach(data(9), server, tmp_path / "out.jsonl", concurrency=1)
        assert len(server.requests) == 1 and caught.value.exit_code == 2 and KEY not in str(caught.value)
        if status == 401:
            server.models = Fault(401)
            with pytest.raises(AccessError, match=told):
                teach(data(9), server, tmp_path / "out.jsonl")
            assert len(server.requests) == 1


def test_an_unknown_model_is_told_with_those_there_are(data, tmp_path, teach):
    """Before a row is asked; servers that name a model's tag, or none at all, are taken as they are."""
    with serve(right(four)) as server:
        server.models = ["teacher-7b", "other"]
        with pytest.raises(AccessError, match=r"no model 'teacher' · did you mean 'teacher-7b'. allowed: other, teacher-7b"):
            teach(data(2), server, tmp_path / "out.jsonl")
        assert server.requests == []
        for number, models in enumerate((["teacher:latest"], [], Fault(404), Fault(body={"x": 1}, status=405))):
            server.models = models
            assert teach(data(2), server, tmp_path / f"{number}.jsonl").used == 2


def test_the_key_is_in_no_file(data, tmp_path, teach):
    """Even where a server repeats it."""
    with serve(lambda body, n: [four(KEY), f"{KEY}", Fault(400, KEY), completion(KEY, "length")][n % 4]) as server:
        teach(data(4), server, tmp_path / "out.jsonl", concurrency=1)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()
    assert "***" in (tmp_path / "out.aside.jsonl").read_text()


# Stopped and gone on

KILLED = """
import os, sys
from pathlib import Path
from lora_cot.data import kept
from lora_cot.engines.teacher import Teacher
from lora_cot.annotation.run import annotate
left, torn, append = int(sys.argv[4]), sys.argv[5] == "torn", kept.KeptRows.append
def dying(self, path, row):
    global left
    if not left:
        if torn:
            with path.open("a") as file:
                file.write(kept._line(row)[:15])
        os._exit(9)
    left -= 1
    append(self, path, row)
kept.KeptRows.append = dying
annotate(Path(sys.argv[1]), Teacher(sys.argv[2], "teacher"), Path(sys.argv[3]), "two_stage", concurrency=2)
"""


@pytest.mark.parametrize("torn", ["torn", "clean"])
def test_killed_in_its_own_process_and_resumed(data, tmp_path, teach, torn):
    """A process that dies without a word, in the middle of a line or between two, leaves files that go on."""
    path, output = data(6), tmp_path / "out.jsonl"
    with serve(right(two_stages)) as server:
        done = subprocess.run([sys.executable, "-c", KILLED, path, server.url, output, "3", torn], timeout=60)
        assert done.returncode == 9
        written = output.read_text()
        assert written.count("\n") == 3 and written.endswith("\n") == (torn == "clean")
        assert teach(path, server, output, "two_stage", key=None).asked == 3
    assert sorted(ids(output)) == [f"q{n}" for n in range(6)]


class Killed(BaseException):
    """A process that ends."""


@pytest.mark.parametrize("after", range(7))
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_killed_at_any_row_and_resumed_is_uninterrupted(data, tmp_path, teach, monkeypatch, name, after):
    """However many rows were written; with a piece of the next line, or not; used and aside alike."""
    from lora_cot.data import kept

    def answer(body, _):
        number = number_of(body)
        return WRITE[name](str(number), f"since {number}") if number % 3 else "no"

    whole = kept.KeptRows.append
    left = [after]

    def dying(self, path, row):
        if not left[0]:
            with path.open("a") as file:
                file.write(kept._line(row)[: after * 3])
            raise Killed
        left[0] -= 1
        whole(self, path, row)

    path, output = data(6), tmp_path / "out.jsonl"
    with serve(answer) as server:
        teach(path, server, tmp_path / "whole.jsonl", name)
        monkeypatch.setattr(kept.KeptRows, "append", dying)
        if after < 6:
            with pytest.raises(Killed):
                teach(path, server, output, name)
            monkeypatch.setattr(kept.KeptRows, "append", whole)
        report = teach(path, server, output, name)
        assert report.asked == (6 - after or 6)
    for suffix in (".jsonl", ".aside.jsonl"):
        found, expected = ({json.dumps(row) for row in lines(tmp_path / f"{stem}{suffix}")} for stem in ("out", "whole"))
        assert found == expected
    both = ids(output) + ids(tmp_path / "out.aside.jsonl")
    assert sorted(both) == sorted(f"q{n}" for n in range(6))


def test_rows_that_are_new_are_asked_and_rows_that_are_gone_are_told(data, tmp_path, teach):
    """The data may grow between two runs."""
    output = tmp_path / "out.jsonl"
    with serve(right(four)) as server:
        teach(data(3), server, output)
        assert (teach(data(5), server, output).asked, teach(data(2), server, output).foreign) == (2, 3)
