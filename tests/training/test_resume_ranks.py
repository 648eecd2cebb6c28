"""Two processes, stopped and gone on with: by kill, by SIGTERM to the launcher, on another number of processes, by a hang."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lora_cot.checkpoints import store
from tests.conftest import ROOT
from tests.training.test_resume import OPTIONS, assert_same, left

pytestmark = pytest.mark.slow


@pytest.fixture
def start(make_recipe, tmp_path):
    """Starts so many processes on a recipe, 0: one without a launcher; what goes wrong is told by the environment."""
    values = make_recipe(tmp_path, *OPTIONS, "training.per_device_train_batch_size=1", "training.eval_generations=0")
    path = tmp_path / "ranks.yaml"
    path.write_text(yaml.safe_dump(values.model_dump(mode="json", exclude_none=True)))

    def run(ranks, name, *overrides, **harm):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
        command = [sys.executable, *launcher]
        script = [str(ROOT / "tests" / "training" / "driver.py"), str(path), f"name={name}", *overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment |= {key.upper(): str(value) for key, value in harm.items()}
        with (tmp_path / "err").open("w") as err:
            return subprocess.Popen([*command, *script], cwd=tmp_path, env=environment, stderr=err, start_new_session=True)

    return run


def ends(process, folder, code=0):
    """Wait for a launch; returns what it said."""
    returned = process.wait(timeout=180)
    said = (folder / "err").read_text()
    errors = [line for line in said.splitlines() if "rror" in line]
    assert (returned == 0) == (code == 0), "\n".join([*errors, said[-3000:]])
    return said


def newest(folder):
    """Step of a run's newest checkpoint."""
    return max(store.steps(folder / "checkpoints"), default=0)


def left_by_ranks(folder, ranks=2):
    """As `left`, with the random numbers of every rank."""
    place = folder / "checkpoints" / f"checkpoint-{newest(folder)}"
    (place / "rng_state.pth").write_bytes((place / "rng_state_0.pth").read_bytes())
    states = [torch.load(place / f"rng_state_{rank}.pth", weights_only=False)["cpu"] for rank in range(ranks)]
    return left(folder) | {"random": torch.stack(states)}


def test_two_ranks_go_on_bit_for_bit_after_a_kill_of_one_and_a_sigterm(start, tmp_path):
    """Rank 1 is killed inside an accumulation of the first epoch; then the launcher is told to stop in the second."""
    ends(start(2, "whole"), tmp_path)
    ends(start(2, "cut", harm="kill", harm_rank=1, harm_batch=5), tmp_path, code=1)
    assert newest(tmp_path / "runs" / "cut") == 2
    process = start(2, "cut", "training.hang_after=1000", harm="term", harm_batch=5)
    said = ends(process, tmp_path, code=1)
    assert "goes on after step 2" in said and "stopped by SIGTERM: step 5 is saved" in said, said[-3000:]
    assert newest(tmp_path / "runs" / "cut") == 5
    assert "goes on after step 5" in ends(start(2, "cut"), tmp_path)
    assert_same(left_by_ranks(tmp_path / "runs" / "whole"), left_by_ranks(tmp_path / "runs" / "cut"))


@pytest.mark.parametrize("to", ["the launcher", "all"])
def test_sigterm_saves_within_the_launchers_grace(start, tmp_path, to):
    """Thirty seconds, after which it kills. A scheduler tells every process, those that read the data too."""
    keys = ("max_steps=4000", "save_strategy=no", "eval_strategy=no", "dataloader_num_workers=1")
    process = start(2, "told", *(f"training.{key}" for key in keys))
    log = tmp_path / "runs" / "told" / "log.jsonl"
    while not (log.is_file() and len(log.read_text().splitlines()) > 2):
        assert process.poll() is None, (tmp_path / "err").read_text()[-3000:]
        time.sleep(0.1)
    if to == "all":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    if to == "all":  # and again, into the saving
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
    ends(process, tmp_path, code=1)
    while "stopped by SIGTERM" not in (said := (tmp_path / "err").read_text()):  # a launcher told twice does not wait for it
        assert time.monotonic() - begin < 25, said[-3000:]
        time.sleep(0.1)
    assert time.monotonic() - begin < 25
    step = newest(tmp_path / "runs" / "told")
    assert step > 2 and store.read(tmp_path / "runs" / "told" / "checkpoints" / f"checkpoint-{step}").about["ranks"] == 2


def test_another_number_of_processes_goes_on_where_a_step_is_the_same(start, tmp_path):
    """Two, then one, then two: the same samples a step, and the same losses but for the order of sums."""
    plain = ("lora.lora_dropout=0", "training.eval_strategy=no", "training.save_steps=1")
    ends(start(2, "whole", *plain), tmp_path)
    ends(start(2, "cut", *plain, harm="kill", harm_rank=0, harm_batch=5), tmp_path, code=1)
    said = ends(start(1, "cut", *plain), tmp_path, code=1)
    assert "a step took 4 samples, and would take 2 · set training.gradient_accumulation_steps=4" in said
    alone = ("training.gradient_accumulation_steps=4",)
    said = ends(start(1, "cut", *plain, *alone, harm="kill", harm_batch=8), tmp_path, code=1)
    assert "goes on after step 2" in said and newest(tmp_path / "runs" / "cut") == 4
    assert "goes on after step 4" in ends(start(2, "cut", *plain), tmp_path)
    whole, cut = (
        [row["loss"] for row in map(json.loads, (tmp_path / "runs" / name / "log.jsonl").read_text().splitlines())
         if "loss" in row] for name in ("whole", "cut")
    )  # fmt: skip
    assert len(whole) == 7 and cut == pytest.approx(whole, rel=1e-4)


def test_the_rank_and_the_samples_that_hang_are_named(start, tmp_path):
    """Rank 1 stands still in its second step; rank 0 waits for it."""
    process = start(2, "hang", "training.hang_after=2", harm="hang", harm_rank=1, harm_batch=2)
    deadline = time.monotonic() + 90
    while "no progress" not in (said := (tmp_path / "err").read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.kill()
    told = [line for line in said.splitlines() if line.startswith(("no progress", "  waiting"))]
    assert "rank 1 (process " in told[0] and "of train-0-" in told[0] and "after step 1" in told[0], said[-3000:]
    assert told[1] == "  waiting for it: rank 0"
    subprocess.run(["pkill", "-9", "-f", f"{tmp_path}/ranks.yaml"], check=False)


def test_a_loss_that_is_not_finite_on_one_rank_ends_both_at_once(start, tmp_path):
    """In their third step; each says why, nothing waits, and the checkpoint before is kept."""
    begin = time.monotonic()
    said = ends(start(2, "nan", "training.eval_strategy=no", harm="nan", harm_rank=1, harm_batch=5), tmp_path, code=1)
    told = [line for line in said.splitlines() if line.startswith("error: training · a loss is not finite after 2 steps: ")]
    assert len(told) == 2 and all("nan on train-0-" in line and "step 2 is kept" in line for line in told)
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("stage", [2, 3])
def test_a_sharded_run_goes_on_bit_for_bit_on_as_many_processes_alone(start, tmp_path, stage):
    """Killed in the second epoch's first accumulation; other processes, or no DeepSpeed, are refused with what to do."""
    sharded = f"training.deepspeed={ROOT}/ds_configs/zero{stage}.json"
    ends(start(2, "whole", sharded), tmp_path)
    ends(start(2, "cut", sharded, harm="kill", harm_rank=0, harm_batch=8), tmp_path, code=1)
    assert newest(tmp_path / "runs" / "cut") == 4
    if stage == 2:
        said = ends(start(1, "cut", sharded, "training.gradient_accumulation_steps=4"), tmp_path, code=1)
        assert "its optimizer is in 2 shards, and there are 1 processes · start 2 processes, or begin a new run" in said
        said = ends(start(2, "cut"), tmp_path, code=1)
        assert "it was written under ZeRO-2, and this is no DeepSpeed · take the same again, or begin a new run" in said
    assert "goes on after step 4" in ends(start(2, "cut", sharded), tmp_path)
    one, other = (
        {"adapter": load_file(folder / "adapter" / "adapter_model.safetensors"), "log": told(folder)}
        for folder in (tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")
    )
    torch.testing.assert_close(other["adapter"], one["adapter"], atol=0, rtol=0)
    assert other["log"] == one["log"]
    if stage == 3:
        checkpoint = tmp_path / "runs" / "cut" / "checkpoints" / f"checkpoint-{newest(tmp_path / 'runs' / 'cut')}"
        ends(start(1, "fresh", f"model.adapter={checkpoint}", "training.max_steps=1"), tmp_path)


def told(folder):
    """Losses and accuracies of a run's log."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key.startswith(("loss", "eval_loss", "step", "pass"))} for row in rows]


@pytest.mark.parametrize(
    ("engine", "where"),
    [("plain", "_write"), ("plain", "_save_optimizer_and_scheduler"), ("sharded", "_save_optimizer_and_scheduler")],
)
def test_a_rank_that_cannot_write_ends_the_run(start, tmp_path, engine, where):
    """Rank 0 from its second checkpoint on; the others, who may be waiting inside DeepSpeed's own writing, end with it."""
    sharded = [f"training.deepspeed={ROOT}/ds_configs/zero2.json"] if engine == "sharded" else []
    harm = {"harm": "full", "harm_rank": 0, "harm_batch": 5, "harm_where": where}
    begin = time.monotonic()
    said = ends(start(2, "full", *sharded, "training.eval_strategy=no", **harm), tmp_path, code=1)
    assert time.monotonic() - begin < 100
    assert "writing a checkpoint failed after step 4: [Errno 28] No space left on device" in said, said[-3000:]
    assert "the checkpoint of step 2 is kept; make room if the disk is full" in said
    assert sorted(path.name for path in (tmp_path / "runs" / "full" / "checkpoints").iterdir()) == ["checkpoint-2"]


def test_two_ranks_save_two_hundred_times(start, tmp_path):
    """After every step, without a race: each is whole when it has its name, and nothing is left over."""
    keys = ("max_steps=200", "save_steps=1", "gradient_accumulation_steps=1", "eval_strategy=no", "save_total_limit=3")
    ends(start(2, "often", *(f"training.{key}" for key in keys)), tmp_path)
    root = tmp_path / "runs" / "often" / "checkpoints"
    assert sorted(path.name for path in root.iterdir()) == [f"checkpoint-{step}" for step in (198, 199, 200)]
    for step in (198, 199, 200):
        assert store.read(root / f"checkpoint-{step}").about["ranks"] == 2


def test_ctrl_c_in_a_terminal_saves_although_workers_hear_it_too(start, tmp_path):
    """It goes to every process of the terminal: to those that read the data, which the trainer still needs, as well."""
    keys = ("max_steps=4000", "save_strategy=no", "eval_strategy=no", "dataloader_num_workers=2")
    process = start(0, "told", *(f"training.{key}" for key in keys))
    log = tmp_path / "runs" / "told" / "log.jsonl"
    while not (log.is_file() and len(log.read_text().splitlines()) > 2):
        assert process.poll() is None, (tmp_path / "err").read_text()[-3000:]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130, (tmp_path / "err").read_text()[-3000:]
    step = newest(tmp_path / "runs" / "told")
    assert step > 2 and f"stopped by SIGINT: step {step} is saved" in (tmp_path / "err").read_text()
