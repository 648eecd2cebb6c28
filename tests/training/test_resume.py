"""A run that was stopped at any moment, and gone on with, is the run that was not: bit for bit."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from lora_cot.checkpoints import store
from lora_cot.errors import RunError, StoppedError, TrainingError
from lora_cot.training import run as run_module
from lora_cot.training import trainer as trainer_module
from lora_cot.training.run import train
from lora_cot.training.trainer import CotTrainer

OPTIONS = (
    "training.max_steps=7",
    "training.per_device_train_batch_size=2",
    "training.gradient_accumulation_steps=2",
    "training.save_strategy=steps",
    "training.save_steps=2",
    "training.eval_strategy=steps",
    "training.eval_steps=3",
    "lora.lora_dropout=0.2",
    "data.train.0.limit=14",
)
"""Epochs of 4 steps: 14 samples make 3 steps of 4 and one of 2."""


class KilledError(Exception):
    """What ends a run at once."""


@pytest.fixture
def recipe(make_recipe, tmp_path):
    """A recipe with everything in it that could differ after a restart."""
    return lambda *more: make_recipe(tmp_path, *OPTIONS, *more)


def stop_after(monkeypatch, batches, error=KilledError):
    """Let training end before its so manieth batch."""
    real, seen = CotTrainer.training_step, []

    def step(self, *given, **more):
        if len(seen) == batches:
            if error is KilledError:
                raise error
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append(0)
        return real(self, *given, **more)

    monkeypatch.setattr(CotTrainer, "training_step", step)


def left(folder):
    """All that a run leaves that could differ: weights, optimizer, schedule, random numbers, log."""
    newest = folder / "checkpoints" / f"checkpoint-{max(store.steps(folder / 'checkpoints'))}"
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = ("tokens_per_second", "peak_memory_gb", "train_", "eval_runtime", "eval_samples_per_second", "eval_steps_per")
    rows = [{key: value for key, value in row.items() if not key.startswith(timed)} for row in rows]
    return {
        "adapter": load_file(folder / "adapter" / "adapter_model.safetensors"),
        "optimizer": torch.load(newest / "optimizer.pt", weights_only=True)["state"],
        "schedule": torch.load(newest / "scheduler.pt", weights_only=True),
        "random": torch.load(newest / "rng_state.pth", weights_only=False)["cpu"],
        "log": [row for row in rows if len(row) > 2],
    }


def assert_same(one, other):
    """Bit for bit."""
    for name in ("adapter", "optimizer", "random"):
        torch.testing.assert_close(other[name], one[name], atol=0, rtol=0)
    assert other["schedule"] == one["schedule"]
    assert other["log"] == one["log"]


@pytest.fixture(scope="module")
def whole():
    """What the run that nobody stopped leaves, once it was trained."""
    return {}


@pytest.fixture
def uninterrupted(whole, recipe, tmp_path):
    """What the run that nobody stopped leaves."""
    if not whole:
        whole.update(left(train(recipe(), tmp_path / "whole")))
    assert len({row["loss"] for row in whole["log"] if "loss" in row}) == 7
    return whole


@pytest.mark.parametrize("batches", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5, 7, 8, 12))])
def test_a_killed_run_goes_on_bit_for_bit(recipe, uninterrupted, tmp_path, monkeypatch, capsys, batches):
    """Killed before anything is saved, in an accumulation, at an epoch's end, in the second epoch."""
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(KilledError):
            train(recipe(), tmp_path)
    saved = {1: 0, 3: 0, 5: 2, 7: 4, 8: 4, 12: 6}[batches]
    assert max(store.steps(tmp_path / "tiny" / "checkpoints"), default=0) == saved
    capsys.readouterr()
    folder = train(recipe(), tmp_path)
    assert (f"goes on after step {saved}" in capsys.readouterr().err) == (saved > 0)
    assert_same(uninterrupted, left(folder))


@pytest.mark.slow
@pytest.mark.parametrize("after", ["dataloader_num_workers=1", "dataloader_persistent_workers=true"])
def test_workers_that_read_ahead_change_nothing(recipe, uninterrupted, tmp_path, monkeypatch, after):
    """What they have read when the run is stopped is read again; nor do they draw from what training draws from."""
    workers = ("training.dataloader_num_workers=2", "training.dataloader_persistent_workers=true")
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(KilledError):
            train(recipe(*workers), tmp_path)
    assert_same(uninterrupted, left(train(recipe("training.dataloader_num_workers=1", f"training.{after}"), tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("batches", [5, 8])
def test_what_was_summed_up_for_the_log_goes_on_too(recipe, tmp_path, monkeypatch, batches):
    """Logs every three steps, checkpoints every two; and evaluations at the end of an epoch, after its checkpoint."""
    keys = ("training.logging_steps=3", "training.eval_strategy=epoch", "training.eval_on_start=true")
    whole = left(train(recipe(*keys), tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, batches, StoppedError if batches == 5 else KilledError)
        with pytest.raises((KilledError, StoppedError)):
            train(recipe(*keys), tmp_path)
    assert_same(whole, left(train(recipe(*keys), tmp_path)))
    assert [row["step"] for row in whole["log"] if "eval_loss" in row] == [0, 4, 7]


@pytest.mark.slow
def test_a_run_killed_in_the_evaluation_after_an_epochs_checkpoint_makes_up_for_it(recipe, tmp_path, monkeypatch):
    """The checkpoint of the step was written before."""
    keys = ("training.eval_strategy=epoch", "training.per_device_eval_batch_size=1")
    whole, real = left(train(recipe(*keys), tmp_path / "whole")), CotTrainer.prediction_step

    def step(self, *given, **more):
        if self.state.global_step >= killed:
            raise KilledError
        return real(self, *given, **more)

    for killed in (4, 7):
        with monkeypatch.context() as patch:
            patch.setattr(CotTrainer, "prediction_step", step)
            with pytest.raises(KilledError):
                train(recipe(*keys), tmp_path)
        assert max(store.steps(tmp_path / "tiny" / "checkpoints")) == killed
    assert_same(whole, left(train(recipe(*keys), tmp_path)))


@pytest.mark.slow
def test_sigterm_in_the_last_step_is_heard(recipe, uninterrupted, tmp_path, monkeypatch):
    """Before the best weights could take the place of the last; what is left to do is done by the next call."""
    with monkeypatch.context() as patch:
        stop_after(patch, 12, StoppedError)
        with pytest.raises(StoppedError, match="step 7 is saved"):
            train(recipe(), tmp_path)
    assert_same(uninterrupted, left(train(recipe(), tmp_path)))


def test_ctrl_c_saves_too(recipe, tmp_path, monkeypatch):
    """And has an exit code of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(signal, "SIGTERM", signal.SIGINT)
        stop_after(patch, 2, StoppedError)
        with pytest.raises(StoppedError, match="stopped by SIGINT: step 1 is saved") as stopped:
            train(recipe(), tmp_path)
    assert stopped.value.exit_code == 130


@pytest.mark.slow
def test_a_layer_that_is_seldom_used_is_no_obstacle_to_going_on(recipe, tmp_path, monkeypatch):
    """Whether all that is trained learns was judged in the first steps; the next may well not use it."""
    cut_short(recipe(), tmp_path, monkeypatch)
    monkeypatch.setattr("lora_cot.adapters.liveness.Liveness.check", lambda self: pytest.fail("judged again"))
    train(recipe(), tmp_path)


def test_where_no_checkpoint_can_be_trusted_nothing_is_trained_and_nothing_removed(recipe, tmp_path, monkeypatch):
    """However often it is tried; what to remove to begin again is said."""
    cut_short(recipe("training.save_steps=4"), tmp_path, monkeypatch)
    path = tmp_path / "tiny" / "checkpoints" / "checkpoint-4" / "scheduler.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    for _ in range(2):
        with pytest.raises(RunError, match=r"there are checkpoints, and none of them can be trusted · to begin again, remove"):
            train(recipe("training.save_steps=4"), tmp_path)
    assert (tmp_path / "tiny" / "checkpoints" / "checkpoint-4.damaged" / "optimizer.pt").is_file()


def test_a_disk_that_cannot_be_read_is_not_taken_for_damage(tmp_path, monkeypatch):
    """Nothing is put aside."""
    staged = store.begin(tmp_path, 3)
    (staged / "x").write_text("x")
    store.commit(staged, {})
    monkeypatch.setattr(store, "_entry", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(RunError, match="it cannot be read: Input/output error · nothing was changed: try again"):
        store.newest_good(tmp_path)
    assert (tmp_path / "checkpoint-3").is_dir()


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_start_takes_nothing_from_a_stopped_run(recipe, tmp_path, monkeypatch):
    """Its recipe stays as it was."""
    cut_short(recipe(), tmp_path, monkeypatch)
    before = (tmp_path / "tiny" / "recipe.yaml").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(store, "flush", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            train(recipe(), tmp_path)
    assert (tmp_path / "tiny" / "recipe.yaml").read_text() == before
    train(recipe(), tmp_path)


@pytest.mark.slow
def test_too_little_room_for_a_checkpoint_ends_the_run_with_what_it_has(recipe, tmp_path, monkeypatch):
    """Before anything is written."""
    with monkeypatch.context() as patch:
        patch.setattr(store, "check_space", lambda *_: (_ for _ in ()).throw(RunError("no room")))
        with pytest.raises(TrainingError, match=r"making room for a checkpoint failed after step 2: no room"):
            train(recipe(), tmp_path)
    assert not list((tmp_path / "tiny" / "checkpoints").glob("*"))
    train(recipe(), tmp_path)


@pytest.mark.slow
def test_a_run_that_was_moved_finds_its_best_checkpoint(recipe, tmp_path, monkeypatch):
    """Whatever its folder is called now."""
    best = [option for option in BEST if "early" not in option]
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(KilledError):
            train(recipe(*best), tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    loaded, real = [], CotTrainer._load_from_checkpoint
    note = lambda self, folder, model=None: loaded.append(folder) or real(self, folder)  # noqa: E731
    monkeypatch.setattr(CotTrainer, "_load_from_checkpoint", note)
    folder = train(recipe(*best), tmp_path / "there")
    assert loaded[-1] == str(folder / "checkpoints" / "checkpoint-1")
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_told_before_training_goes_on(recipe, tmp_path, monkeypatch):
    """Not only at the end."""
    best = [option for option in BEST if "early" not in option]
    cut_short(recipe(*best), tmp_path, monkeypatch)
    (tmp_path / "tiny" / "checkpoints" / "checkpoint-1" / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(CotTrainer, "training_step", lambda *_: pytest.fail("trained"))
    told = r"checkpoint-1/adapter_config\.json · the file is not as it was written · .*load_best_model_at_end=false"
    with pytest.raises(RunError, match=told):
        train(recipe(*best), tmp_path)


@pytest.mark.slow
def test_an_adapter_out_of_a_damaged_checkpoint_is_refused(recipe, tmp_path, monkeypatch):
    """A new run may begin from a checkpoint, which must be whole."""
    cut_short(recipe(), tmp_path, monkeypatch)
    folder = tmp_path / "tiny" / "checkpoints" / "checkpoint-4"
    train(recipe("name=more", f"model.adapter={folder}", "training.max_steps=1"), tmp_path)
    path = folder / "adapter_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RunError, match="the file is not as it was written · name another checkpoint"):
        train(recipe("name=other", f"model.adapter={folder}", "training.max_steps=1"), tmp_path)


@pytest.mark.slow
def test_how_long_samples_may_be_decides_what_makes_a_step(recipe, tmp_path, monkeypatch):
    """It may be corrected where it changes nothing; where other samples are left out, the run is not gone on with."""
    drop = "training.long_samples=drop"
    cut_short(recipe(drop, "training.max_length=500"), tmp_path, monkeypatch)
    with pytest.raises(RunError, match="other samples would make a step than before · take 4 samples a step"):
        train(recipe(drop, "training.max_length=130"), tmp_path)
    train(recipe(drop, "training.max_length=400"), tmp_path)


@pytest.mark.parametrize("batches", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 6, 9))])
def test_sigterm_saves_the_last_step_and_loses_nothing(recipe, uninterrupted, tmp_path, monkeypatch, batches):
    """In an accumulation it saves what was before it."""
    with monkeypatch.context() as patch:
        stop_after(patch, batches, StoppedError)
        with pytest.raises(StoppedError, match=r"stopped by SIGTERM: .* · the same command goes on") as stopped:
            train(recipe(), tmp_path)
    assert stopped.value.exit_code == 143
    assert max(store.steps(tmp_path / "tiny" / "checkpoints"), default=0) == {0: 0, 2: 1, 6: 4, 9: 5}[batches]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert_same(uninterrupted, left(train(recipe(), tmp_path)))


@pytest.mark.parametrize("where", ["among the losses", pytest.param("among the answers", marks=pytest.mark.slow)])
def test_sigterm_in_an_evaluation_is_made_up_for(recipe, uninterrupted, tmp_path, monkeypatch, where):
    """The evaluation is not waited for; the run that goes on begins with it."""
    calls = []

    def ask(real):
        def call(*given, **more):
            calls.append(0)
            if len(calls) == (2 if where == "among the losses" else 1):
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*given, **more)

        return call

    with monkeypatch.context() as patch:
        if where == "among the losses":
            patch.setattr(CotTrainer, "prediction_step", ask(CotTrainer.prediction_step))
        else:
            patch.setattr(trainer_module, "measure", ask(trainer_module.measure))
        with pytest.raises(StoppedError):
            train(recipe("training.per_device_eval_batch_size=1"), tmp_path)
    found = store.read(tmp_path / "tiny" / "checkpoints" / "checkpoint-3")
    assert found.about["pending"] and not any("eval_loss" in row for row in log_of(tmp_path / "tiny"))
    assert_same(uninterrupted, left(train(recipe(), tmp_path)))


def log_of(folder):
    """Rows of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_killed_after_its_last_step_is_not_trained_further(recipe, uninterrupted, tmp_path, monkeypatch):
    """The last step lies in the middle of an epoch."""
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_adapter", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            train(recipe(), tmp_path)
    stepped = []
    monkeypatch.setattr(CotTrainer, "training_step", lambda *_: stepped.append(0))
    assert_same(uninterrupted, left(train(recipe(), tmp_path)))
    assert not stepped


BEST = (
    "training.load_best_model_at_end=true",
    "training.metric_for_best_model=loss",
    "training.early_stopping_patience=2",
    "training.eval_steps=1",
    "training.save_steps=1",
    "training.save_total_limit=1",
    "training.learning_rate=0",
    "training.eval_generations=0",
    "training.per_device_eval_batch_size=4",
)


@pytest.mark.slow
def test_early_stopping_goes_on_counting_and_the_best_checkpoint_stays(recipe, tmp_path, monkeypatch):
    """With a learning rate of zero the first evaluation is the best, and the third ends the run, stopped or not."""
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(KilledError):
            train(recipe(*BEST), tmp_path)
    assert set(store.steps(tmp_path / "tiny" / "checkpoints")) == {1, 2}
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_adapter", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            train(recipe(*BEST), tmp_path)
    stepped = []
    monkeypatch.setattr(CotTrainer, "training_step", lambda *_: stepped.append(0))
    folder = train(recipe(*BEST), tmp_path)
    assert not stepped and json.loads((folder / "report.json").read_text())["passes"][0]["steps"] == 3


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(recipe, uninterrupted, tmp_path, monkeypatch, capsys):
    """The one before is taken, and it is said which file was wrong."""
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(KilledError):
            train(recipe(), tmp_path)
    path = tmp_path / "tiny" / "checkpoints" / "checkpoint-4" / "optimizer.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    folder = train(recipe(), tmp_path)
    told = capsys.readouterr().err
    assert "passed over: " in told and "checkpoint-4/optimizer.pt · the file is not as it was written" in told
    assert "goes on after step 2" in told
    assert_same(uninterrupted, left(folder))


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_not_taken_for_the_best(recipe, tmp_path, monkeypatch):
    """The run stops with what is wrong; the same command takes the last weights if it is told to."""
    real, best = CotTrainer._load_best_model, [option for option in BEST if "early" not in option]

    def damage(self):
        path = next((tmp_path / "tiny" / "checkpoints" / "checkpoint-1").glob("*.safetensors"))
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(CotTrainer, "_load_best_model", damage)
        with pytest.raises(RunError, match=r"checkpoint-1/adapter_model\.safetensors · the file is not as it was written"):
            train(recipe(*best), tmp_path)
    train(recipe(*best, "training.load_best_model_at_end=false"), tmp_path)


def cut_short(recipe, tmp_path, monkeypatch):
    """Leave a run that was killed after four steps."""
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(KilledError):
            train(recipe, tmp_path)


def test_another_recipe_is_refused_with_what_differs(recipe, tmp_path, monkeypatch):
    """Every key, with both values; what changes nothing of the training may differ."""
    cut_short(recipe(), tmp_path, monkeypatch)
    with pytest.raises(RunError) as refused:
        train(recipe("lora.r=8", "training.learning_rate=1e-3", "training.weight_decay=0.1"), tmp_path)
    told = str(refused.value)
    assert "lora.r · it was 4, and is 8" in told and "training.weight_decay · it was not set, and is 0.1" in told
    assert "training.learning_rate · it was 0.01, and is 0.001 · set it back, or set another name=" in told
    again = ("training.save_steps=3", "training.save_total_limit=5", "search.temperature=0.1", "evaluation.limit=3")
    assert json.loads((train(recipe(*again), tmp_path) / "report.json").read_text())["passes"][0]["steps"] == 7


@pytest.mark.slow
def test_other_data_and_another_base_are_refused(recipe, make_base, tmp_path, monkeypatch):
    """Under the same names: a text that was edited, and weights that were exchanged."""
    base = tmp_path / "base"
    shutil.copytree(make_base("llava"), base)
    stages = dict.fromkeys(("SUMMARY", "CAPTION", "REASONING", "CONCLUSION"), "x")
    rows = [{"id": str(n), "question": f"q {n}", "stages": stages} for n in range(14)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    ours = recipe(f"model.base={base}", f"data.train=[{{source: jsonl, path: {path}}}]")
    cut_short(ours, tmp_path, monkeypatch)
    whole = path.read_text()
    path.write_text(whole.replace("q 3", "q 4"))
    with pytest.raises(RunError, match=r"the data changed since this run began[\s\S]*put that back, or set another name="):
        train(ours, tmp_path)
    path.write_text(whole)
    weights = base / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-8] + b"\1" * 8)
    with pytest.raises(RunError, match=r"model\.base, or the files it names, changed since"):
        train(ours, tmp_path)
    weights.write_bytes(kept)
    train(ours, tmp_path)


@pytest.mark.slow
def test_batches_of_another_size_go_on_where_the_steps_are_the_same(recipe, tmp_path, monkeypatch):
    """Four samples a step, as one batch or as two; other samples a step are refused with the cure."""
    cut_short(recipe(), tmp_path, monkeypatch)
    with pytest.raises(RunError, match=r"a step took 4 samples, and would take 8 · set training\.grad.*_steps=1"):
        train(recipe("training.per_device_train_batch_size=4"), tmp_path)
    folder = train(recipe("training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=1"), tmp_path)
    assert json.loads((folder / "report.json").read_text())["passes"][0]["steps"] == 7


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_samples(recipe, tmp_path, monkeypatch):
    """Before the weights see it; the last checkpoint is finite, and the run goes on from it once the cause is gone."""
    real, ids = trainer_module.stage_loss, []

    def poisoned(log_probs, *rest):
        loss = real(log_probs, *rest)
        seen.append(0)
        return loss * float("nan") if len(seen) == 6 else loss

    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "stage_loss", poisoned)
        collate = CotTrainer._prepare_inputs
        patch.setattr(CotTrainer, "_prepare_inputs", lambda self, inputs: ids.append(inputs) or collate(self, inputs))
        with pytest.raises(TrainingError, match=r"a loss is not finite after 2 steps: nan on (\S+), (\S+) ·") as stopped:
            train(recipe("training.eval_strategy=no"), tmp_path)
    assert "the checkpoint of step 2 is kept" in str(stopped.value)
    named = str(stopped.value).split("nan on ")[1].split(" ·")[0].split(", ")
    assert named == texts_of(recipe("training.eval_strategy=no"), ids[5])
    weights = load_file(tmp_path / "tiny" / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    train(recipe("training.eval_strategy=no"), tmp_path)


def texts_of(recipe, inputs):
    """Ids of the samples in a batch, by their questions and answers."""
    from lora_cot.backbones.loading import load_backbone
    from lora_cot.data.collate import encode
    from lora_cot.data.sources import load_data

    backbone = load_backbone(recipe.model)
    encoder = backbone.encoder(recipe.format.build())
    rows = {tuple(encode(encoder, s, True).input_ids): s.id for s in load_data(recipe.data, recipe.format.build())[0]}
    masked = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    return [rows[tuple(ids[mask.bool()].tolist())] for ids, mask in masked]


def test_weights_that_are_not_finite_are_never_saved(recipe, tmp_path, monkeypatch):
    """Here they became so in the optimizer's step, unseen by the loss."""
    real, seen = CotTrainer.training_step, []

    def step(self, *given, **more):
        loss = real(self, *given, **more)
        seen.append(0)
        if len(seen) == 7:
            next(p for p in self.model.parameters() if p.requires_grad).grad.fill_(float("inf"))
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(CotTrainer, "training_step", step)
        with pytest.raises(TrainingError, match=r"weights are not finite after 4 steps: .*lora_A.* step 2 is kept"):
            train(recipe("training.max_grad_norm=0", "training.eval_strategy=no"), tmp_path)
    assert set(store.steps(tmp_path / "tiny" / "checkpoints")) == {2}
