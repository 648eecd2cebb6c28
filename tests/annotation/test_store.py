"""The files of `annotate`: whose they are, and what is mended."""

import json
import subprocess
import sys

import pytest

from lora_cot.annotation.store import Store
from lora_cot.annotation.verdicts import Aside
from lora_cot.errors import DataError, RunError
from tests.annotation.conftest import four, ids, lines, right
from tests.scripted_server import serve

SETTING = {"teacher": "http://host/v1", "model": "m", "format": "four_stage", "prompt": "1"}


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def test_rows_lie_on_disk_as_soon_as_they_are_taken(output):
    """While the store is still open."""
    with Store(output, SETTING) as store:
        store.take("1", {"id": "1", "output": "é\ud800"})
        store.put_aside("2", Aside("empty", "d", "t"))
        assert ids(output) == ["1"] and lines(store.aside) == [{"id": "2", "reason": "empty", "detail": "d", "text": "t"}]
    with Store(output, SETTING) as store:
        assert (store.done, store.reasons, store.counts()) == ({"1"}, {"2": "empty"}, {"empty": 1})
    assert lines(output) == [{"id": "1", "output": "é?"}]


@pytest.mark.parametrize("key", [*SETTING, "image_root"])
def test_another_setting_is_not_mixed_in(output, key):
    """What differs is named, with before and now; nothing is changed."""
    with Store(output, SETTING) as store:
        store.take("1", {"id": "1"})
    before = {path: path.read_bytes() for path in output.parent.iterdir()}
    with pytest.raises(RunError, match=f"out.jsonl · begun with {key} .*, now 'other' · name another output, or go on as"):
        Store(output, SETTING | {key: "other"})
    assert {path: path.read_bytes() for path in output.parent.iterdir()} == before


@pytest.mark.parametrize("model", ["other"])
def test_another_model_is_refused_before_it_is_asked(data, tmp_path, teach, model):
    with serve(right(four)) as server:
        server.models = ["teacher", model]
        teach(data(2), server, tmp_path / "out.jsonl")
        with pytest.raises(RunError, match="begun with model 'teacher', now 'other'"):
            teach(data(4), server, tmp_path / "out.jsonl", model=model)
        with pytest.raises(RunError, match="begun with prompt"):
            teach(data(4), server, tmp_path / "out.jsonl", faithful=True)
        assert len(server.requests) == 2


@pytest.mark.parametrize("name", ["out.jsonl", "out.aside.jsonl"])
def test_somebody_elses_file_is_left_alone(output, name):
    """One without its .meta.json; an empty one belongs to nobody."""
    (output.parent / name).write_text('{"id": "1"}\n')
    with pytest.raises(RunError, match="not from this command"):
        Store(output, SETTING)
    (output.parent / name).write_text("")
    Store(output, SETTING).__exit__(None, None, None)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_last_line_that_was_cut_off_is_taken_away(output, cut):
    """Wherever it was cut, within a character too; the row counts as not done."""
    with Store(output, SETTING) as store:
        store.take("1", {"id": "1"})
        store.take("é", {"id": "é"})
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) - cut])
    with Store(output, SETTING) as store:
        assert store.done == {"1"}
        store.take("é", {"id": "é"})
    assert output.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"id": "1"}\nnonsense\n', "line 2 · no row of this command · remove the line"),
        ('{"id": "1"}\n[]\n', "line 2 · no row"),
        ('{"id": "1"}\n{"output": "x"}\n', "line 2 · no row"),
        ('{"id": "1"}\n{"id": "1"}\n', "line 2 · '1' is there twice"),
    ],
)
def test_a_damaged_file_is_not_written_to(output, content, told):
    """Its lock is free again afterwards."""
    with Store(output, SETTING):
        pass
    for path in (output, output.with_suffix(".aside.jsonl")):
        path.write_text(content)
        with pytest.raises(DataError, match=told):
            Store(output, SETTING)
        path.write_text("")
    with Store(output, SETTING) as store:
        assert store.done == set()


def test_a_row_in_both_files_is_told(output):
    with Store(output, SETTING) as store:
        store.take("1", {"id": "1"})
    output.with_suffix(".aside.jsonl").write_text('{"id": "1", "reason": "empty"}\n')
    with pytest.raises(DataError, match=r"'1' is in out.jsonl too"):
        Store(output, SETTING)


def test_two_processes_do_not_write_to_one_file(output):
    """The second is refused as long as the first lives, and no longer, however it ends."""
    hold = (
        "import os, sys; from pathlib import Path; from lora_cot.annotation.store import Store\n"
        f"store = Store(Path({str(output)!r}), {SETTING!r}); print('held', flush=True); sys.stdin.readline(); os._exit(9)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another process writes to it"):
            Store(output, SETTING)
        other.communicate("go\n", timeout=30)
    Store(output, SETTING).__exit__(None, None, None)


def test_rows_aside_can_be_forgotten(output):
    """Those that are named; the others stay, to the letter."""
    with Store(output, SETTING) as store:
        for name in "123":
            store.put_aside(name, Aside("empty"))
        store.forget_aside({"2", "9"})
        store.put_aside("4", Aside("format"))
        assert store.reasons == {"1": "empty", "3": "empty", "4": "format"}
    assert ids(output.with_suffix(".aside.jsonl")) == ["1", "3", "4"]


def test_names_that_cannot_be_written_are_refused(output, tmp_path):
    """A .json would be read as a list, files that differ in another ending would share what is told beside them; a folder."""
    for path in (tmp_path / "out.json", tmp_path / "out.greedy", tmp_path / "out", tmp_path):
        with pytest.raises(RunError, match=r"name a file that ends with .jsonl"):
            Store(path, SETTING)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        Store(tmp_path / "file" / "out.jsonl", SETTING)


def test_where_no_row_is_left_any_setting_begins_anew(output):
    """Deleting the file is enough."""
    with Store(output, SETTING) as store:
        store.take("1", {"id": "1"})
    output.unlink()
    Store(output, SETTING | {"model": "other"}).__exit__(None, None, None)
    assert json.loads(output.with_suffix(".meta.json").read_text())["model"] == "other"


def test_a_meta_file_that_cannot_be_read_is_told(output):
    with Store(output, SETTING) as store:
        store.take("1", {"id": "1"})
    output.with_suffix(".meta.json").write_text("[")
    with pytest.raises(RunError, match="it cannot be read"):
        Store(output, SETTING)
    output.with_suffix(".meta.json").write_text(json.dumps(SETTING))
    Store(output, SETTING).__exit__(None, None, None)
