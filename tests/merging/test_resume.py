"""A merge that is stopped goes on; the folder appears whole or not at all."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest
from filelock import FileLock
from safetensors.torch import load_file, save_file

import lora_cot
from lora_cot.checkpoints.folders import write_recipe
from lora_cot.errors import RunError
from lora_cot.merging import arithmetic, stream
from lora_cot.merging import merge as merging
from lora_cot.merging.merge import merge
from lora_cot.merging.staging import LOCK, STATE
from tests.conftest import ROOT
from tests.merging.conftest import layers_of, make_adapter, recipe_of

BLOCK = 1024


@pytest.fixture(scope="module")
def adapter(published, tmp_path_factory):
    """An adapter of a base in three files; it is not changed."""
    folder = tmp_path_factory.mktemp("made") / "adapter"
    make_adapter(published("llava"), folder, target_modules=layers_of("llava"))
    write_recipe(recipe_of(published("llava")), folder)
    return folder


@pytest.fixture(scope="module")
def whole(adapter, tmp_path_factory):
    """Bytes of every file of a merge that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "merged"
    merge(adapter, folder, verify=False)
    return bytes_of(folder)


def bytes_of(folder):
    found = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("recipe.yaml", "merge_report.json")
    }
    assert len(found) > 5
    return found


def stopping_after(count, error):
    """A write that fails after so many."""
    put, calls = stream._put, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) > count:
            raise error
        return put(*arguments)

    return failing, calls


def test_it_goes_on_wherever_it_was_stopped(adapter, whole, tmp_path, monkeypatch, capsys):
    """After any write, inside a file or between two: the bytes are those of a merge that nothing stopped."""
    monkeypatch.setattr(arithmetic, "BLOCK", BLOCK)
    counted, calls = stopping_after(10**9, None)
    monkeypatch.setattr(stream, "_put", counted)
    merge(adapter, tmp_path / "counted", verify=False)
    assert len(calls) > 30
    for count in range(0, len(calls), 4):
        output = tmp_path / str(count)
        with monkeypatch.context() as patch:
            patch.setattr(stream, "_put", stopping_after(count, KeyboardInterrupt())[0])
            with pytest.raises(KeyboardInterrupt):
                merge(adapter, output, verify=False)
        assert not output.exists()
        capsys.readouterr()
        finished = [path.name for path in (tmp_path / f".{count}.merging" / "full").glob("*.safetensors")]
        merge(adapter, output, verify=False)
        said = f"going on: {len(finished)} of 3 files are finished"
        assert (said in capsys.readouterr().err) is bool(finished)
        assert bytes_of(output) == whole
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def interrupted(adapter, output, monkeypatch, count=40):
    monkeypatch.setattr(arithmetic, "BLOCK", BLOCK)
    with monkeypatch.context() as patch:
        patch.setattr(stream, "_put", stopping_after(count, KeyboardInterrupt())[0])
        with pytest.raises(KeyboardInterrupt):
            merge(adapter, output, verify=False)
    staging = output.with_name(f".{output.name}.merging")
    assert list((staging / "full").glob("*.safetensors"))
    return staging


def test_a_file_that_was_cut_off_is_written_again(adapter, whole, tmp_path, monkeypatch):
    """As a disk leaves it that lost its last writes."""
    staging = interrupted(adapter, tmp_path / "merged", monkeypatch)
    torn = next((staging / "full").glob("*.safetensors"))
    os.truncate(torn, torn.stat().st_size // 2)
    merge(adapter, tmp_path / "merged", verify=False)
    assert bytes_of(tmp_path / "merged") == whole


@pytest.mark.parametrize("kind", ["adapter", "base", "boot", "version", "device", "features"])
def test_of_other_things_it_begins_again(adapter, tmp_path, monkeypatch, capsys, published, kind):
    """What was finished of another adapter or base, by another version, or before the machine stopped, is not kept."""
    mine = tmp_path / "adapter"
    shutil.copytree(adapter, mine)
    staging = interrupted(mine, tmp_path / "merged", monkeypatch)
    changed = {"boot": ('"boot": "', '"boot": "0'), "device": ('"device": "cpu', '"device": "gpu')}
    changed["version"] = (f'"lora_cot": "{lora_cot.__version__}', '"lora_cot": "0.0.1')
    changed["features"] = ('"vision_features": null', '"vision_features": "clip"')
    if kind == "adapter":
        path = mine / "adapter_model.safetensors"
        save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path)
    elif kind == "base":
        base = shutil.copytree(published("llava"), tmp_path / "base")
        write_recipe(recipe_of(base), mine)
    else:
        text = (staging / STATE).read_text()
        assert changed[kind][0] in text
        (staging / STATE).write_text(text.replace(*changed[kind]))
    merge(mine, tmp_path / "merged", verify=False)
    told = capsys.readouterr().err
    assert "the merge begins again" in told and "going on" not in told


def two_adapters(published, tmp_path):
    """Of a split format, each in a folder of its own."""
    for name in ("rationale", "answer"):
        make_adapter(published("llava"), tmp_path / "adapter" / name, target_modules=layers_of("llava"))
    write_recipe(recipe_of(published("llava"), format={"name": "two_stage"}), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.crossed
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("late", ["make_durable", "keep", "write_merged_card"])
def test_stopped_between_the_proof_and_the_name(published, adapter, tmp_path, monkeypatch, capsys, passes, late):
    """Nothing is merged again: what was put where the output grows is taken back."""
    mine = adapter if passes == 1 else two_adapters(published, tmp_path)
    merge(mine, tmp_path / "whole", verify=False)
    done = getattr(merging, late)

    def stop(*arguments):
        done(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merging, late, stop)
        with pytest.raises(KeyboardInterrupt):
            merge(mine, tmp_path / "merged", verify=False)
    assert not (tmp_path / "merged").exists()
    capsys.readouterr()
    monkeypatch.setattr(stream, "_put", None)
    merge(mine, tmp_path / "merged", verify=False)
    assert capsys.readouterr().err.count("going on: 3 of 3 files are finished") == passes
    wanted = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole").rglob("*.s*")}
    found = {path.relative_to(tmp_path / "merged"): path.read_bytes() for path in (tmp_path / "merged").rglob("*.s*")}
    assert found == wanted and len(found) >= 3 * passes
    assert not (tmp_path / ".merged.merging").exists()


def test_two_do_not_write_one_folder(adapter, tmp_path):
    """The second is refused at once, and leaves the first alone."""
    staging = tmp_path / ".merged.merging"
    staging.mkdir()
    (staging / "mine").write_text("")
    with FileLock(staging / LOCK), pytest.raises(RunError, match="another process is merging"):
        merge(adapter, tmp_path / "merged", verify=False)
    assert (staging / "mine").exists()
    merge(adapter, tmp_path / "merged", verify=False)


def test_what_a_late_kill_leaves_is_tidied_up(adapter, tmp_path):
    """The output is there already: what lies beside it takes room for nothing."""
    merge(adapter, tmp_path / "merged", verify=False)
    (tmp_path / ".merged.merging" / "dequantized").mkdir(parents=True)
    with pytest.raises(RunError, match="exists already"):
        merge(adapter, tmp_path / "merged", verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_full_disk(adapter, whole, tmp_path, monkeypatch):
    """Said in a sentence; what was finished is gone on with."""
    full = stopping_after(9, OSError(errno.ENOSPC, "No space left on device"))[0]
    with monkeypatch.context() as patch:
        patch.setattr(arithmetic, "BLOCK", BLOCK)
        patch.setattr(stream, "_put", full)
        with pytest.raises(RunError, match="the disk is full · make room and call it again"):
            merge(adapter, tmp_path / "merged", verify=False)
    assert not (tmp_path / "merged").exists()
    assert not list((tmp_path / ".merged.merging").rglob("*.part"))
    merge(adapter, tmp_path / "merged", verify=False)
    assert bytes_of(tmp_path / "merged") == whole


def test_room_is_looked_for_before(adapter, tmp_path, monkeypatch):
    """Rather than after an hour."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(RunError, match=r"GiB are needed here and 0\.0 GiB are free"):
        merge(adapter, tmp_path / "merged", verify=False)
    assert not (tmp_path / "merged").exists()


KILLED = """
import os, signal, sys
from lora_cot.merging import arithmetic, stream
from lora_cot.merging.merge import merge
arithmetic.BLOCK, put, calls = 1024, stream._put, []
def dying(*arguments):
    calls.append(1)
    if len(calls) > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return put(*arguments)
stream._put = dying
merge(sys.argv[1], __import__("pathlib").Path(sys.argv[2]), verify=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 12, 25, 40])
def test_killed_for_good(adapter, whole, tmp_path, count):
    """SIGKILL, in the middle of a file or of the merge."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(adapter), str(tmp_path / "merged"), str(count)]
    assert subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert not (tmp_path / "merged").exists()
    merge(adapter, tmp_path / "merged", verify=False)
    assert bytes_of(tmp_path / "merged") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
