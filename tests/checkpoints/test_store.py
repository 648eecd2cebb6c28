"""A folder named checkpoint-N is whole, whatever happened while it was written, moved or removed; or it is told from one."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lora_cot.checkpoints import store
from lora_cot.errors import RunError


def write(root, step, text="x" * 100):
    """A checkpoint of three files, one of them in a folder."""
    staged = store.begin(root, step)
    (staged / "weights.bin").write_bytes(text.encode() * 50)
    (staged / "state.json").write_text(json.dumps({"step": step}))
    (staged / "shards").mkdir()
    (staged / "shards" / "0.pt").write_bytes(b"\0" * 77)
    return store.commit(staged, {"ranks": 1, "text": text[:3]})


def names(root):
    """Everything in a folder."""
    return sorted(path.name for path in root.iterdir())


def test_what_was_written_is_read_again(tmp_path):
    """With what its writer said of it; nothing else is left beside it."""
    folder = write(tmp_path, 20)
    assert folder == tmp_path / "checkpoint-20" and names(tmp_path) == ["checkpoint-20"]
    found = store.read(folder)
    assert (found.step, found.about) == (20, {"ranks": 1, "text": "xxx"})
    manifest = json.loads((folder / store.MANIFEST).read_text())
    assert set(manifest["files"]) == {"weights.bin", "state.json", "shards/0.pt"}
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"].values())


@pytest.mark.parametrize("name", ["weights.bin", "state.json", "shards/0.pt", store.MANIFEST])
def test_every_flipped_byte_is_seen(tmp_path, name):
    """Each byte of each file in turn, of the manifest too."""
    path = write(tmp_path, 3, "y") / name
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(RunError, match="as it was written"):
            store.read(path.parents[name.count("/")])
    path.write_bytes(good)
    store.read(path.parents[name.count("/")])


def test_a_file_that_is_gone_or_cut_is_named(tmp_path):
    """All of them together; and a folder without a manifest was not finished."""
    folder = write(tmp_path, 3)
    (folder / "state.json").unlink()
    (folder / "weights.bin").write_bytes(b"x")
    with pytest.raises(RunError) as wrong:
        store.read(folder)
    assert [problem.what for problem in wrong.value.problems] == ["the file is gone", "the file is not as it was written"]
    (folder / store.MANIFEST).unlink()
    with pytest.raises(RunError, match=r"no manifest\.json: it was not finished"):
        store.read(folder)


@pytest.mark.parametrize("harm", ["manifest", "seal", "name", "gone", "changed"])
def test_whoever_needs_a_damaged_one_is_told_what_to_do(tmp_path, harm):
    """Whatever is wrong with it; where another may be taken, the remedy is that, and nothing is said."""
    folder = write(tmp_path, 2)
    if harm == "manifest":
        (folder / store.MANIFEST).unlink()
    elif harm == "seal":
        (folder / store.MANIFEST).write_text("{}")
    elif harm == "name":
        folder = folder.rename(tmp_path / "checkpoint-3")
    else:
        path = next(path for path in folder.rglob("*") if path.is_file() and path.name != store.MANIFEST)
        path.unlink() if harm == "gone" else path.write_text("other")
    for remedy in ("take another", ""):
        with pytest.raises(RunError) as wrong:
            store.read(folder, remedy)
        assert {problem.remedy for problem in wrong.value.problems} == {remedy}


def test_the_newest_good_one_is_found_and_bad_ones_are_put_aside(tmp_path):
    """Torn and damaged ones are told of and kept under another name; what a kill left is cleared away."""
    for step in (2, 10, 9):
        write(tmp_path, step)
    (tmp_path / "checkpoint-10" / "weights.bin").write_bytes(b"x")
    (tmp_path / "checkpoint-11").mkdir()
    store.begin(tmp_path, 12)
    (tmp_path / ".removed-checkpoint-1").mkdir()
    found, problems = store.newest_good(tmp_path)
    assert found.step == 9 and [Path(p.where).parts[-1] for p in problems] == ["checkpoint-11", "weights.bin"]
    assert names(tmp_path) == ["checkpoint-10.damaged", "checkpoint-11.damaged", "checkpoint-2", "checkpoint-9"]
    assert store.newest_good(tmp_path / "nothing") == (None, [])


def test_rotation_keeps_the_newest_and_the_protected(tmp_path):
    """And at least one, whatever it is told."""
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    store.rotate(tmp_path, None)
    assert set(store.steps(tmp_path)) == {1, 2, 3, 4}
    store.rotate(tmp_path, 2, [1])
    assert set(store.steps(tmp_path)) == {1, 3, 4}
    store.rotate(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-4"]


class KilledError(BaseException):
    """The process ends here."""


def killed_at(monkeypatch, number, root):
    """Let the so manieth call that changes the disk, or the next, end the process; rmtree removes one file first."""
    seen = []

    def counted(real, half=None):
        def call(*given, **more):
            seen.append(real)
            if len(seen) > number:
                if half:
                    half(*given)
                raise KilledError
            return real(*given, **more)

        return call

    def half_removed(folder, *_, **__):
        for path in sorted(Path(folder).rglob("*"))[:1]:
            path.unlink()

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(Path, "write_text", counted(Path.write_text, lambda path, text, **_: path.write_bytes(b"{")))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree, half_removed))
    return seen


@pytest.mark.parametrize("replaces", [False, True], ids=["new", "of the same step"])
def test_a_kill_at_any_moment_leaves_a_good_checkpoint(tmp_path, monkeypatch, replaces):
    """While one is written over or beside another, and while older ones are rotated away."""
    outcomes = []
    for number in range(100):
        root = tmp_path / str(number)
        write(root, 4, "old")
        write(root, 5, "old")
        with monkeypatch.context() as patch:
            seen = killed_at(patch, number, root)
            try:
                write(root, 5 if replaces else 6, "new")
                store.rotate(root, 1)
                done = True
            except KilledError:
                done = False
            moments = len(seen)
        for step in store.steps(root):
            store.read(root / f"checkpoint-{step}")  # whatever has a checkpoint's name is whole
        found, problems = store.newest_good(root)
        assert found is not None and not problems
        outcomes.append((found.step, found.about["text"]))
        assert not [name for name in names(root) if name.startswith(".")]
        if done:
            break
    assert done and moments > 8
    assert outcomes[0] == (5, "old") and outcomes[-1] == (5 if replaces else 6, "new")
    assert len(set(outcomes)) == 2 and outcomes == sorted(outcomes, key=outcomes.index), "never neither of them"


def test_everything_is_on_the_disk_before_it_is_relied_on(tmp_path, monkeypatch):
    """Files before the manifest is written, the manifest before the folder has its name, the name before it counts."""
    calls, real = [], {"rename": Path.rename, "write": Path.write_text}
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(("flush", Path(os.readlink(f"/proc/self/fd/{fd}")).name)))
    monkeypatch.setattr(Path, "rename", lambda self, to: calls.append(("rename", Path(to).name)) or real["rename"](self, to))
    note = lambda self, *a, **k: calls.append(("write", self.name)) or real["write"](self, *a, **k)  # noqa: E731
    monkeypatch.setattr(Path, "write_text", note)
    write(tmp_path, 7)
    order = [calls.index(call) for call in (
        ("flush", "weights.bin"), ("flush", "0.pt"), ("flush", "shards"), ("write", store.MANIFEST), ("flush", store.MANIFEST),
        ("rename", "checkpoint-7"), ("flush", tmp_path.name),
    )]  # fmt: skip
    assert order[3] > max(order[:3]) and order[3:] == sorted(order[3:])


def test_a_checkpoint_under_another_name_is_not_taken_for_it(tmp_path):
    """Its step is sealed with the rest."""
    write(tmp_path, 4).rename(tmp_path / "checkpoint-6")
    with pytest.raises(RunError, match="it is the checkpoint of step 4, under another name"):
        store.read(tmp_path / "checkpoint-6")


def test_too_little_room_is_seen_before_anything_is_written(tmp_path):
    """With what it takes and what is free."""
    with pytest.raises(RunError, match=r"a checkpoint takes about 1000000000000\.0 MB, and [\d.]+ MB are free · make room"):
        store.check_space(tmp_path, 10**18)
    store.check_space(tmp_path / "new", 10)
